// A block per pair of sources and band: inner products of all their derivative images, a tile of pixels at a time.
// Sums of a tile in float32, of the tiles in float64.
#include "stamp.cuh"

constexpr int TILE = 64;  // pixels

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
    float* first = shared;  // [n_column][TILE + 1], weighted
    float* second = shared + n_column * (TILE + 1);
    double* result = out + (pair * n_band + band) * n_column * n_column;
    for (int begin = 0; begin < n_column * n_column; begin += blockDim.x) {
        const int o = begin + threadIdx.x;
        const float* mine = first + (o / n_column) * (TILE + 1);
        const float* other = second + (o % n_column) * (TILE + 1);
        double sum = 0.0;
        for (int start = 0; start < n_pixel; start += TILE) {
            for (int k = threadIdx.x; k < 2 * n_column * TILE; k += blockDim.x) {
                const int p = k % TILE, side = k / TILE / n_column, column = k / TILE % n_column;
                float value = 0.0f;
                if (start + p < n_pixel) {
                    const int x = x0 + (start + p) % across, y = y0 + (start + p) / across;
                    const Stamp stamp = {core[side] + (int64)column * window * window,
                                         outer[side] ? outer[side] + (int64)column * n_cell : nullptr,
                                         left[side], top[side], window, margin, binning};
                    value = stamp.at(x, y);
                    if (side == 0) value *= weight[(int64)y * width + x];
                }
                (side ? second : first)[column * (TILE + 1) + p] = value;
            }
            __syncthreads();
            if (o < n_column * n_column) {
                float part = 0.0f;
                for (int p = 0; p < TILE; ++p) part += mine[p] * other[p];
                sum += part;
            }
            __syncthreads();
        }
        if (o < n_column * n_column) result[o] = sum;
    }
}
