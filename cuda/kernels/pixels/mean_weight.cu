// The mean weight under a source, weighted by a profile of sum one: a block per source and band.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(128) mean_weight(
    const int* __restrict__ scene, const int* __restrict__ corner, const int* __restrict__ basis,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ weights,
    const float* __restrict__ profile, const int* __restrict__ inset, int n_band, int window,
    double* __restrict__ out) {
    __shared__ double scratch[128];
    const int64 i = blockIdx.x;
    const int band = blockIdx.y, s = scene[i], n_pixel = window * window;
    if (s < 0) return;
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    const float* plane = weights + canvas_start[s] + ((int64)band * height + corner[2 * i + 1]) * width + corner[2 * i];
    const float* share = profile + ((int64)basis[i] * n_band + band) * n_pixel;
    double sum = 0.0;
    const int cut = inset[i];
    for (int p = threadIdx.x; p < n_pixel; p += blockDim.x) {
        const int y = p / window, x = p - y * window;
        if (y >= cut && y < window - cut && x >= cut && x < window - cut) sum += plane[(int64)y * width + x] * share[p];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[i * n_band + band] = sum;
}
