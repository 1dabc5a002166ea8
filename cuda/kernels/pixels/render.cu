// Sums of stamps: a block owns a square of pixels of one band and adds the sources that touch it, in their order.
#include "stamp.cuh"

extern "C" __global__ void __launch_bounds__(256) render(
    const int* __restrict__ pixel_tile, const int* __restrict__ tile_start, const int* __restrict__ tile_source,
    const int* __restrict__ corner, const int* __restrict__ extended, const int64* __restrict__ canvas_start,
    const int* __restrict__ canvas_shape, const float* __restrict__ stamps, const float* __restrict__ cells,
    const float* __restrict__ background, int n_band, int window, int margin,
    int binning, int n_cell, float* __restrict__ out) {
    const int64 tile = blockIdx.x;
    const int band = blockIdx.y, s = pixel_tile[3 * tile];
    if (s < 0) return;
    const int y = pixel_tile[3 * tile + 1] + threadIdx.y, x = pixel_tile[3 * tile + 2] + threadIdx.x;
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    if (y >= height || x >= width) return;
    const int64 pixel = canvas_start[s] + ((int64)band * height + y) * width + x;
    float sum = background ? background[pixel] : 0.0f;
    for (int k = tile_start[tile]; k < tile_start[tile + 1]; ++k) {
        const int i = tile_source[k], left = corner[2 * i], top = corner[2 * i + 1];
        const int around = cells && extended[i] ? margin : 0;
        const int px = x - left + around, py = y - top + around, size = window + 2 * around;
        if (px < 0 || px >= size || py < 0 || py >= size) continue;
        const int64 row = (int64)i * n_band + band;
        const Stamp stamp = {stamps + row * window * window, around ? cells + row * n_cell : nullptr, left, top, window,
                             margin, binning};
        sum += stamp.at(x, y);
    }
    out[pixel] = sum;
}
