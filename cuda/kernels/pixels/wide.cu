// wide: sets the extent of sources for which a window is enough. A block per source, threads along the basis; products
// are float32, as on the CPU, sums float64.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) wide(
    const int* __restrict__ scene, const float* __restrict__ through, const float* __restrict__ coefficients,
    const double* __restrict__ wbar, const int* __restrict__ smallest, int n_band, int n_basis, int window,
    double threshold, int* __restrict__ extent) {
    __shared__ double scratch[128];
    const int i = blockIdx.x;
    if (scene[i] < 0) return;
    double square = 0.0;
    for (int b = 0; b < n_band; ++b) {
        const int64 row = ((int64)i * n_band + b) * n_basis;
        double sum = 0.0;
        for (int k = threadIdx.x; k < n_basis; k += 128) sum += through[row + k] * coefficients[row + k];
        square += wbar[(int64)i * n_band + b] * sum;
    }
    square = block_sum(square, scratch);
    if (threadIdx.x != 0) return;
    if (square <= threshold) extent[i] = max(-window, smallest[i]);
    else if (window == 0) extent[i] = 1;
}
