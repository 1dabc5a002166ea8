// normal: a block per pair of sources and band, a warp per row of the pixels that both windows cover. Products are
// float32, as on the CPU, the sum is float64.
#include "stamp.cuh"

extern "C" __global__ void __launch_bounds__(256) normal(
    const int* __restrict__ pairs, const int* __restrict__ scene, const int* __restrict__ corner,
    const int* __restrict__ extended, const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape,
    const float* __restrict__ stamps, const float* __restrict__ cells, const float* __restrict__ weights, int n_band,
    int window, int margin, int binning, int n_cell, double* __restrict__ out) {
    __shared__ double scratch[256];
    const int band = blockIdx.y;
    const int64 pair = blockIdx.x;
    if (pairs[2 * pair] < 0) return;
    Stamp stamp[2];
    int x0 = 0, y0 = 0;
    const int s = scene[pairs[2 * pair]], height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    int x1 = width, y1 = height;
    for (int side = 0; side < 2; ++side) {
        const int i = pairs[2 * pair + side];
        const int64 row = (int64)i * n_band + band;
        const bool whole = cells && extended[i];
        const int around = whole ? margin : 0, x = corner[2 * i], y = corner[2 * i + 1];
        stamp[side] = {stamps + row * window * window, whole ? cells + row * n_cell : nullptr, x, y, window, margin,
                       binning};
        x0 = max(x0, x - around), x1 = min(x1, x + window + around);
        y0 = max(y0, y - around), y1 = min(y1, y + window + around);
    }
    const float* weight = weights + canvas_start[s] + (int64)band * height * width;
    double sum = 0.0;
    for (int y = y0 + (int)threadIdx.x / 32; y < y1; y += 8)
        for (int x = x0 + (int)threadIdx.x % 32; x < x1; x += 32)
            sum += stamp[0].at(x, y) * weight[(int64)y * width + x] * stamp[1].at(x, y);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[pair * n_band + band] = sum;
}
