// Derivatives of the coefficients of each band by relative flux, offset and shape: a block per source and band.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) columns(
    const float* __restrict__ maps, const float* __restrict__ d_maps, const float* __restrict__ mix,
    const float* __restrict__ d_mix, const float* __restrict__ coefficients, const double* __restrict__ latent,
    int n_band, int n_shape, int n_component, int n_basis, float* __restrict__ out) {
    const int64 i = blockIdx.x;
    const int band = blockIdx.y, n_move = n_shape + 2, n_map = n_component * n_basis;
    const float flux = (float)exp(latent[i * (n_band + n_move) + band]);
    float* row = out + (i * n_band + band) * (n_move + 1) * n_basis;
    for (int k = threadIdx.x; k < n_basis; k += blockDim.x) {
        row[k] = coefficients[(i * n_band + band) * n_basis + k];
        for (int d = 0; d < n_move; ++d) {
            float sum = 0.0f;
            for (int m = 0; m < n_component; ++m) {
                sum += mix[(i * n_component + m) * n_band + band] * d_maps[(i * n_move + d) * n_map + m * n_basis + k];
                if (d >= 2)
                    sum += d_mix[((i * n_shape + d - 2) * n_component + m) * n_band + band] *
                           maps[i * n_map + m * n_basis + k];
            }
            row[(d + 1) * n_basis + k] = flux * sum;
        }
    }
}
