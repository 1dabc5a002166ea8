// alike: a block per blend, an element of its members' latents per thread and turn.
#include "kernel.cuh"

__device__ inline bool same_source(const int* corner, const double* latent, int64 i, int64 j, int n_latent) {
    if (i == j) return true;
    if (corner[2 * i] != corner[2 * j] || corner[2 * i + 1] != corner[2 * j + 1]) return false;
    for (int l = 0; l < n_latent; ++l)
        if (!(latent[i * n_latent + l] == latent[j * n_latent + l])) return false;
    return true;
}

extern "C" __global__ void __launch_bounds__(64) alike(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const int* __restrict__ corner,
    const double* __restrict__ latent, const double* __restrict__ step, int n_latent, double* __restrict__ out) {
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    for (int e = threadIdx.x; e < n * n_latent; e += 64) {
        const int m = e / n_latent, l = e - m * n_latent;
        const int64 i = blend_source[start + m];
        double total = 0.0;
        int count = 0;
        for (int other = 0; other < n; ++other) {
            const int64 j = blend_source[start + other];
            if (!same_source(corner, latent, i, j, n_latent)) continue;
            total += step[j * n_latent + l];
            ++count;
        }
        out[i * n_latent + l] = total / count;
    }
}
