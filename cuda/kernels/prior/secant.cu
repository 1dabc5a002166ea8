// secant: a block per source, its matrix in shared memory: read once, written once.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) secant(
    const int* __restrict__ scene, double* __restrict__ curvature, const double* __restrict__ latent,
    const double* __restrict__ trial_latent, const double* __restrict__ gradient,
    const double* __restrict__ trial_gradient, int n_latent, double min_ratio, double max_ratio, double min_curvature) {
    SHARED_MEMORY(double, matrix);
    double* step = matrix + n_latent * n_latent;
    double* change = step + n_latent;
    double* expected = change + n_latent;
    const int i = blockIdx.x, n_entry = n_latent * n_latent;
    if (scene[i] < 0) return;
    double* mine = curvature + (int64)i * n_entry;
    for (int e = threadIdx.x; e < n_entry; e += blockDim.x) matrix[e] = mine[e];
    for (int l = threadIdx.x; l < n_latent; l += blockDim.x) {
        const int64 at = (int64)i * n_latent + l;
        step[l] = trial_latent[at] - latent[at];
        change[l] = gradient[at] - trial_gradient[at];
    }
    __syncthreads();
    for (int l = threadIdx.x; l < n_latent; l += blockDim.x) {
        double sum = 0.0;
        for (int k = 0; k < n_latent; ++k) sum += matrix[k * n_latent + l] * step[k];  // symmetric: no bank conflicts
        expected[l] = sum;
    }
    __syncthreads();
    double before = 0.0, after = 0.0;
    for (int l = 0; l < n_latent; ++l) {
        before += step[l] * expected[l];
        after += step[l] * change[l];
    }
    if (!(after > min_ratio * before && after < max_ratio * before && before > min_curvature)) return;
    for (int e = threadIdx.x; e < n_entry; e += blockDim.x) {
        const int row = e / n_latent, column = e - row * n_latent;
        mine[e] = matrix[e] - expected[row] * expected[column] / before + change[row] * change[column] / after;
    }
}
