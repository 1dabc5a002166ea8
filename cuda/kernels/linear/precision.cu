// precision: a block per pair of sources and band.
#include "inner_products.cuh"
#include "stamp.cuh"

extern "C" __global__ void __launch_bounds__(256) precision(
    const int* __restrict__ pairs, const int* __restrict__ slot, const int* __restrict__ scene,
    const int* __restrict__ corner, const int* __restrict__ extended, const int64* __restrict__ canvas_start,
    const int* __restrict__ canvas_shape, const float* __restrict__ stamps, const float* __restrict__ cells,
    const float* __restrict__ weights, int n_band, int n_column, int window, int margin, int binning, int n_cell,
    double* __restrict__ out) {
    SHARED_MEMORY(float, shared);
    const int band = blockIdx.y;
    const int64 pair = blockIdx.x;
    if (pairs[2 * pair] < 0) return;
    const int s = scene[pairs[2 * pair]], height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    int x0 = 0, y0 = 0, x1 = width, y1 = height;
    const float* core[2];
    const float* outer[2];
    int left[2], top[2];
    for (int side = 0; side < 2; ++side) {
        const int i = pairs[2 * pair + side];
        const int64 row = ((int64)slot[i] * n_band + band) * n_column;
        const bool whole = cells && extended[i];
        const int around = whole ? margin : 0;
        left[side] = corner[2 * i];
        top[side] = corner[2 * i + 1];
        core[side] = stamps + row * window * window;
        outer[side] = whole ? cells + row * n_cell : nullptr;
        x0 = max(x0, left[side] - around), x1 = min(x1, left[side] + window + around);
        y0 = max(y0, top[side] - around), y1 = min(y1, top[side] + window + around);
    }
    const int across = max(x1 - x0, 0), n_pixel = across * max(y1 - y0, 0);
    const float* weight = weights + canvas_start[s] + (int64)band * height * width;
    inner_products(
        shared, n_column, n_pixel,
        [&](int side, int column, int p) {
            const int x = x0 + p % across, y = y0 + p / across;
            const Stamp stamp = {core[side] + (int64)column * window * window,
                                 outer[side] ? outer[side] + (int64)column * n_cell : nullptr,
                                 left[side], top[side], window, margin, binning};
            const float value = stamp.at(x, y);
            return side ? value : value * weight[(int64)y * width + x];
        },
        out + (pair * n_band + band) * n_column * n_column);
}
