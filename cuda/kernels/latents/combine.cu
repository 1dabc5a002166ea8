// Coefficients of every band from the component maps: a block per source and band.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) combine(
    const double* __restrict__ latent, const float* __restrict__ maps, const float* __restrict__ mix, int n_band,
    int n_latent, int n_component, int n_basis, float* __restrict__ out) {
    const int64 i = blockIdx.x;
    const int band = blockIdx.y;
    const float flux = (float)exp(latent[i * n_latent + band]);
    for (int k = threadIdx.x; k < n_basis; k += blockDim.x) {
        float sum = 0.0f;
        for (int m = 0; m < n_component; ++m)
            sum += mix[(i * n_component + m) * n_band + band] * maps[(i * n_component + m) * n_basis + k];
        out[(i * n_band + band) * n_basis + k] = flux * sum;
    }
}
