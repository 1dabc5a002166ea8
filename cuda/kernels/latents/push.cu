// J v: a block per source, a thread per coefficient; every derivative is read once.
#include "kernel.cuh"

constexpr int MOST_COMPONENTS = 4;

extern "C" __global__ void __launch_bounds__(128) push(
    const int* __restrict__ row_tile, const float* __restrict__ maps, const float* __restrict__ d_maps,
    const float* __restrict__ mix, const float* __restrict__ d_mix, const float* __restrict__ coefficients,
    const double* __restrict__ latent, const double* __restrict__ step, int n_band, int n_shape, int n_component,
    int n_basis, float* __restrict__ out) {
    SHARED_MEMORY(float, shared);
    const int64 i = row_tile[blockIdx.x];
    if (i < 0) return;
    const int n_move = n_shape + 2, n_latent = n_band + n_move, n_map = n_component * n_basis;
    float* v = shared;                                   // [n_latent]
    float* flux = v + n_latent;                          // [n_band]
    float* share = flux + n_band;                        // [n_component][n_band], the mix
    float* change = share + n_component * n_band;        // [n_component][n_band], of the mix
    for (int t = threadIdx.x; t < n_latent; t += blockDim.x) v[t] = (float)step[i * n_latent + t];
    for (int t = threadIdx.x; t < n_band; t += blockDim.x) flux[t] = (float)exp(latent[i * n_latent + t]);
    __syncthreads();
    for (int t = threadIdx.x; t < n_component * n_band; t += blockDim.x) {
        float sum = 0.0f;
        for (int s = 0; s < n_shape; ++s) sum += v[n_band + 2 + s] * d_mix[(i * n_shape + s) * n_component * n_band + t];
        share[t] = mix[i * n_component * n_band + t];
        change[t] = sum;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < n_basis; k += blockDim.x) {
        float along[MOST_COMPONENTS], map[MOST_COMPONENTS];
#pragma unroll
        for (int m = 0; m < MOST_COMPONENTS; ++m) {
            along[m] = 0.0f;
            map[m] = m < n_component ? maps[i * n_map + m * n_basis + k] : 0.0f;
        }
        for (int d = 0; d < n_move; ++d)
#pragma unroll
            for (int m = 0; m < MOST_COMPONENTS; ++m)
                if (m < n_component) along[m] += v[n_band + d] * d_maps[(i * n_move + d) * n_map + m * n_basis + k];
        for (int b = 0; b < n_band; ++b) {
            float sum = 0.0f;
#pragma unroll
            for (int m = 0; m < MOST_COMPONENTS; ++m)
                if (m < n_component) sum += share[m * n_band + b] * along[m] + change[m * n_band + b] * map[m];
            const int64 at = (i * n_band + b) * n_basis + k;
            out[at] = coefficients[at] * v[b] + flux[b] * sum;
        }
    }
}
