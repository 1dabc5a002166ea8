// stars: a block per source; the blocks of galaxies end at once. A warp projects the Gaussian and its slopes on one
// function of the basis at a time.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(256) stars(
    const int* __restrict__ scene, const double* __restrict__ latent, const int* __restrict__ star,
    const double* __restrict__ core, const double* __restrict__ sums, double psf_sigma, int side, int n_band,
    int n_latent, int n_component, int n_basis, int n_move, int n_shape, float* __restrict__ maps,
    float* __restrict__ d_maps, float* __restrict__ mix, float* __restrict__ d_mix) {
    __shared__ double partial[24 * 33];  // 33: no bank conflicts
    __shared__ double total[3];
    SHARED_MEMORY(double, along_x);
    double* slope_x = along_x + side;
    double* along_y = slope_x + side;
    double* slope_y = along_y + side;
    double* raw = slope_y + side;  // and by x, by y: n_basis each
    const int64 i = blockIdx.x;
    if (scene[i] < 0 || !star[i]) return;
    const int lane = threadIdx.x, row = threadIdx.y, t = row * 32 + lane, half = side / 2;

    for (int e = t; e < 2 * side; e += 256) {
        const int axis = e / side, p = e - axis * side;
        const double distance = p - half - latent[i * n_latent + n_band + axis];
        const double profile = exp(-0.5 * (distance / psf_sigma) * (distance / psf_sigma));
        along_x[2 * axis * side + p] = profile;
        along_x[(2 * axis + 1) * side + p] = profile * distance / (psf_sigma * psf_sigma);
    }
    for (int first = 0; first < n_basis; first += 8) {
        __syncthreads();
        const int k = first + row;
        double sum = 0.0, by_x = 0.0, by_y = 0.0;
        if (k < n_basis) {
            const double* phi = core + (int64)k * side * side;
            for (int p = lane; p < side * side; p += 32) {
                const int y = p / side, x = p - y * side;
                const double value = phi[p];
                sum += value * along_y[y] * along_x[x];
                by_x += value * along_y[y] * slope_x[x];
                by_y += value * slope_y[y] * along_x[x];
            }
        }
        partial[(3 * row) * 33 + lane] = sum;
        partial[(3 * row + 1) * 33 + lane] = by_x;
        partial[(3 * row + 2) * 33 + lane] = by_y;
        __syncthreads();
        if (t < 24 && first + t / 3 < n_basis) {
            double all = 0.0;
            for (int p = 0; p < 32; ++p) all += partial[t * 33 + p];
            raw[(t % 3) * n_basis + first + t / 3] = all;
        }
    }
    __syncthreads();
    if (t < 3) {
        double all = 0.0;
        for (int k = 0; k < n_basis; ++k) all += raw[t * n_basis + k] * sums[k];
        total[t] = all;
    }
    __syncthreads();
    const double flux = total[0];
    float* my_maps = maps + i * n_component * n_basis;
    float* my_slopes = d_maps + i * n_move * n_component * n_basis;
    for (int e = t; e < n_component * n_basis; e += 256) my_maps[e] = (float)(raw[e % n_basis] / flux);
    for (int e = t; e < n_move * n_component * n_basis; e += 256) {
        const int axis = e / (n_component * n_basis), k = e % n_basis;
        my_slopes[e] = axis > 1 ? 0.0f : (float)(raw[(1 + axis) * n_basis + k] / flux
                                                 - raw[k] * total[1 + axis] / (flux * flux));
    }
    for (int e = t; e < n_component * n_band; e += 256) mix[i * n_component * n_band + e] = 1.0f / n_component;
    for (int e = t; e < n_shape * n_component * n_band; e += 256)
        d_mix[i * n_shape * n_component * n_band + e] = 0.0f;
}
