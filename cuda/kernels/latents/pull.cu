// J^T g: a block per source. Each thread takes some basis functions; the sums are added for 32 results at a time.
#include "kernel.cuh"

constexpr int MOST_COMPONENTS = 4, AT_ONCE = 32, THREADS = 128, PARTS = THREADS / AT_ONCE;

extern "C" __global__ void __launch_bounds__(THREADS) pull(
    const int* __restrict__ row_tile, const float* __restrict__ maps, const float* __restrict__ d_maps,
    const float* __restrict__ mix, const float* __restrict__ d_mix, const float* __restrict__ coefficients,
    const double* __restrict__ latent, const float* __restrict__ d_coefficients, const double* __restrict__ add,
    int n_band, int n_shape, int n_component, int n_basis, double* __restrict__ out) {
    SHARED_MEMORY(float, shared);
    __shared__ float found[AT_ONCE][THREADS + 1], part[AT_ONCE][PARTS];
    const int64 i = row_tile[blockIdx.x];
    if (i < 0) return;
    const int n_move = n_shape + 2, n_latent = n_band + n_move, n_map = n_component * n_basis;
    const int n_mix = n_component * n_band, n_result = n_latent + n_mix;
    float* flux = shared;           // [n_band]
    float* share = flux + n_band;   // [n_component][n_band]
    float* total = share + n_mix;   // by fluxes, moves, and the mix of each component and band
    for (int t = threadIdx.x; t < n_band; t += THREADS) flux[t] = (float)exp(latent[i * n_latent + t]);
    for (int t = threadIdx.x; t < n_mix; t += THREADS) share[t] = mix[i * n_mix + t];
    __syncthreads();
    for (int first = 0; first < n_result; first += AT_ONCE) {
        float sum[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) sum[j] = 0.0f;
        for (int k = threadIdx.x; k < n_basis; k += THREADS) {
            float d_map[MOST_COMPONENTS] = {};
            for (int b = 0; b < n_band; ++b) {
                const float scaled = flux[b] * d_coefficients[(i * n_band + b) * n_basis + k];
#pragma unroll
                for (int m = 0; m < MOST_COMPONENTS; ++m)
                    if (m < n_component) d_map[m] += share[m * n_band + b] * scaled;
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                const int o = first + j;
                if (o < n_band) {
                    const int64 at = (i * n_band + o) * n_basis + k;
                    sum[j] += coefficients[at] * d_coefficients[at];
                } else if (o < n_latent) {
                    const float* row = d_maps + (i * n_move + o - n_band) * n_map + k;
#pragma unroll
                    for (int m = 0; m < MOST_COMPONENTS; ++m)
                        if (m < n_component) sum[j] += row[m * n_basis] * d_map[m];
                } else if (o < n_result) {
                    const int m = (o - n_latent) / n_band, b = (o - n_latent) % n_band;
                    sum[j] += maps[i * n_map + m * n_basis + k] * flux[b] *
                              d_coefficients[(i * n_band + b) * n_basis + k];
                }
            }
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; ++j) found[j][threadIdx.x] = sum[j];
        __syncthreads();
        const int j = threadIdx.x / PARTS, p = threadIdx.x % PARTS;
        float partial = 0.0f;
        for (int t = p; t < THREADS; t += PARTS) partial += found[j][t];
        part[j][p] = partial;
        __syncthreads();
        if (threadIdx.x < AT_ONCE && first + (int)threadIdx.x < n_result) {
            float all = 0.0f;
#pragma unroll
            for (int q = 0; q < PARTS; ++q) all += part[threadIdx.x][q];
            total[first + threadIdx.x] = all;
        }
        __syncthreads();
    }
    for (int t = threadIdx.x; t < n_latent; t += THREADS) {
        float result = total[t];
        if (t >= n_band + 2)
            for (int j = 0; j < n_mix; ++j)
                result += d_mix[(i * n_shape + t - n_band - 2) * n_mix + j] * total[n_latent + j];
        out[i * n_latent + t] = (double)result + (add ? add[i * n_latent + t] : 0.0);
    }
}
