// couplings: a block per pair of sources and band. Pixels are the canvas' pixels of even row and column.
#include "inner_products.cuh"

extern "C" __global__ void __launch_bounds__(256) couplings(
    const int* __restrict__ pairs, const int* __restrict__ slot, const int* __restrict__ scene,
    const int* __restrict__ corner, const int* __restrict__ inset, const int64* __restrict__ canvas_start,
    const int* __restrict__ canvas_shape, const float* __restrict__ images, const float* __restrict__ weights,
    int n_band, int n_column, int window, float* __restrict__ out) {
    SHARED_MEMORY(float, shared);
    const int band = blockIdx.y, half = (window + 1) / 2;
    const int64 pair = blockIdx.x;
    if (pairs[2 * pair] < 0) return;
    const int s = scene[pairs[2 * pair]], height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    int x0 = 0, y0 = 0, x1 = width / 2, y1 = height / 2;  // an odd last row or column has no weight
    const float* image[2];
    int left[2], top[2];
    for (int side = 0; side < 2; ++side) {
        const int i = pairs[2 * pair + side], x = corner[2 * i], y = corner[2 * i + 1], cut = inset[i];
        image[side] = images + ((int64)slot[i] * n_band + band) * n_column * half * half;
        left[side] = (x + 1) / 2, top[side] = (y + 1) / 2;
        x0 = max(x0, (x + cut + 1) / 2), x1 = min(x1, (x + window - cut + 1) / 2);
        y0 = max(y0, (y + cut + 1) / 2), y1 = min(y1, (y + window - cut + 1) / 2);
    }
    const int across = max(x1 - x0, 0), n_pixel = across * max(y1 - y0, 0);
    const float* weight = weights + canvas_start[s] + (int64)band * height * width;
    inner_products(
        shared, n_column, n_pixel,
        [&](int side, int column, int p) {
            const int x = x0 + p % across, y = y0 + p / across;
            const float value = image[side][((int64)column * half + y - top[side]) * half + x - left[side]];
            if (side) return value;
            const float* four = weight + 2 * ((int64)y * width + x);
            return value * ((four[0] + four[width]) + (four[1] + four[width + 1]));
        },
        out + (pair * n_band + band) * n_column * n_column);
}
