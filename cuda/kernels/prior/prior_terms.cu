// prior_terms: a warp per source. Every lane sums over bands by itself, from shared memory: one barrier in all.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) prior_terms(
    const int* __restrict__ scene, const double* __restrict__ latent, const float* __restrict__ log_prob,
    const float* __restrict__ flow_gradient, const int* __restrict__ measured, const double* __restrict__ offset0,
    const int* __restrict__ star, const double* __restrict__ mean_color, const double* __restrict__ color_sigma,
    double center_sigma, double slack, int n_source, int n_band, int n_latent, double* __restrict__ log_prior,
    double* __restrict__ gradient) {
    SHARED_MEMORY(double, every);
    const int lane = threadIdx.x, n_row = n_latent + n_band;
    const int64 i = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    double* mine = every + threadIdx.y * n_row;  // latents, then for each band whether it is measured: 1 or 0
    const bool real = i < n_source && scene[i] >= 0;
    if (real) {
        for (int l = lane; l < n_latent; l += 32) mine[l] = latent[i * n_latent + l];
        for (int b = lane; b < n_band; b += 32) mine[n_latent + b] = measured[i * n_band + b] ? 1.0 : 0.0;
    }
    __syncthreads();
    if (!real) return;
    const double* has = mine + n_latent;
    double count = 0.0, level = 0.0;
    for (int b = 0; b < n_band; ++b) {
        count += has[b];
        level += has[b] > 0.0 ? mine[b] - mean_color[b] : 0.0;
    }
    count = fmax(count, 1.0);
    level /= count;
    double missing = 0.0, through = 0.0;  // chi2 of missing bands, and their pull on the measured bands
    for (int b = 0; b < n_band; ++b)
        if (!(has[b] > 0.0)) {
            const double sigma = color_sigma[b] + slack, color = mine[b] - (level + mean_color[b]);
            missing += color / sigma * (color / sigma);
            through += color / (sigma * sigma);
        }
    const bool pointlike = star[i] != 0;
    for (int l = lane; l < n_latent; l += 32) {
        const bool shape = l >= n_band + 2;
        double slope = pointlike ? (shape ? -mine[l] : 0.0) : (double)flow_gradient[i * n_latent + l];
        if (l < n_band) {
            const double sigma = color_sigma[l] + slack, color = mine[l] - (level + mean_color[l]);
            slope += has[l] > 0.0 ? through / count : -color / (sigma * sigma);
        } else if (!shape) {
            slope -= (mine[l] - offset0[2 * i + l - n_band]) / center_sigma / center_sigma;
        }
        gradient[i * n_latent + l] = slope;
    }
    if (lane) return;
    double value = log_prob[i];
    if (pointlike) {
        double square = 0.0;
        for (int l = n_band + 2; l < n_latent; ++l) square += mine[l] * mine[l];
        value = -0.5 * square;
    }
    const double x = (mine[n_band] - offset0[2 * i]) / center_sigma;
    const double y = (mine[n_band + 1] - offset0[2 * i + 1]) / center_sigma;
    log_prior[i] = value - 0.5 * (x * x + y * y) - 0.5 * missing;
}
