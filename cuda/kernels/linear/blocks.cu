// Gauss-Newton blocks of single sources: a block of threads per source. Inner products in float32, sums over bands in
// float64.
#include "kernel.cuh"

constexpr int TILE = 32;  // basis functions at a time

extern "C" __global__ void __launch_bounds__(256) blocks(
    const float* __restrict__ columns, const float* __restrict__ through, const double* __restrict__ wbar,
    const double* __restrict__ curvature, int n_band, int n_column, int n_basis, double* __restrict__ out) {
    SHARED_MEMORY(float, shared);
    const int64 i = blockIdx.x;
    const int n_latent = n_band + n_column - 1;
    float* left = shared;  // [n_column][TILE + 1]
    float* right = shared + n_column * (TILE + 1);
    double* block = out + i * n_latent * n_latent;
    for (int t = threadIdx.x; t < n_latent * n_latent; t += blockDim.x)
        block[t] = curvature[i * n_latent * n_latent + t];
    __syncthreads();
    for (int first = 0; first < n_column * n_column; first += blockDim.x) {
        const int o = first + threadIdx.x, c = o / n_column, d = o % n_column;
        double common = 0.0;
        for (int band = 0; band < n_band; ++band) {
            const int64 row = (i * n_band + band) * n_column;
            float inner = 0.0f;
            for (int k0 = 0; k0 < n_basis; k0 += TILE) {
                for (int t = threadIdx.x; t < n_column * TILE; t += blockDim.x) {
                    const int column = t / TILE, k = k0 + t % TILE;
                    const int64 at = (row + column) * n_basis + k;
                    left[column * (TILE + 1) + t % TILE] = k < n_basis ? through[at] : 0.0f;
                    right[column * (TILE + 1) + t % TILE] = k < n_basis ? columns[at] : 0.0f;
                }
                __syncthreads();
                if (o < n_column * n_column)
                    for (int k = 0; k < TILE; ++k) inner += left[c * (TILE + 1) + k] * right[d * (TILE + 1) + k];
                __syncthreads();
            }
            if (o >= n_column * n_column) continue;
            const double value = wbar[i * n_band + band] * inner;
            if (c > 0) common += value;
            else if (d == 0) block[band * n_latent + band] += value;
            else {  // a flux with a move, which this thread alone writes, on both sides
                block[band * n_latent + n_band + d - 1] += value;
                block[(n_band + d - 1) * n_latent + band] += value;
            }
        }
        if (o < n_column * n_column && c > 0 && d > 0) block[(n_band + c - 1) * n_latent + n_band + d - 1] += common;
    }
}
