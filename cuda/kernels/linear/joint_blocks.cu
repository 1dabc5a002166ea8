// joint_blocks: a block of threads per pair of sources.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(256) joint_blocks(
    const int* __restrict__ pairs, const int* __restrict__ blend, const float* __restrict__ inner,
    const double* __restrict__ alone, const double* __restrict__ damping, double flux_damped, int n_band, int n_column,
    double* __restrict__ out) {
    const int64 pair = blockIdx.x;
    const int i = pairs[2 * pair], n_latent = n_band + n_column - 1;
    if (i < 0) return;
    const bool own = pairs[2 * pair + 1] == i;
    const float* products = inner + pair * n_band * n_column * n_column;
    const double factor = own ? damping[blend[i]] : 0.0;
    for (int e = threadIdx.x; e < n_latent * n_latent; e += blockDim.x) {
        const int l = e / n_latent, k = e - l * n_latent;
        const int c = l < n_band ? 0 : l - n_band + 1, d = k < n_band ? 0 : k - n_band + 1;
        const float* column = products + c * n_column + d;
        double value = 0.0;
        if (l >= n_band && k >= n_band)
            for (int b = 0; b < n_band; ++b) value += column[(int64)b * n_column * n_column];
        else if (l >= n_band || k >= n_band || l == k)
            value = column[(int64)min(l, k) * n_column * n_column];  // the smaller is the flux' band
        if (own) {
            value = alone[(int64)i * n_latent * n_latent + e] + value;
            if (l == k && (l >= n_band || factor >= flux_damped)) value *= 1.0 + factor;
        }
        out[pair * n_latent * n_latent + e] = value;
    }
}
