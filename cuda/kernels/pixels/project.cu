// Windows of images times the folded basis: the adjoint of product and render. Windows are never copied: they are read
// from the images as the product needs them.
#include "gemm.cuh"
#include "stamp.cuh"

// A block multiplies one of several runs of `length` pixels; `add_parts` adds the results of the runs.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 3) project(
    const int* __restrict__ row_tile, const int* __restrict__ basis, const int* __restrict__ scene,
    const int* __restrict__ corner, const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape,
    const int* __restrict__ inset, const float* __restrict__ image, const float* __restrict__ table, int n_source, int n_band, int n_basis, int window,
    int length, float* __restrict__ out) {
    __shared__ GemmShared shared;
    __shared__ int width[TILE_ROWS], cut[TILE_ROWS];
    __shared__ int64 from[TILE_ROWS], to[TILE_ROWS];  // in `image` and `out`; -1: not to be written
    const int* tile = row_tile + (int64)blockIdx.y * TILE_ROWS;
    if (tile[0] < 0) return;  // no sources here
    const int band = blockIdx.z % n_band, run = blockIdx.z / n_band, column = blockIdx.x * TILE_COLUMNS + threadIdx.x;
    const int first_pixel = run * length, n_inner = min(length, window * window - first_pixel);
    if (threadIdx.x < TILE_ROWS) {
        const int m = threadIdx.x, i = tile[m] < 0 ? tile[0] : tile[m];  // padding repeats a window; its result is dropped
        const int s = scene[i], height = canvas_shape[2 * s];
        width[m] = canvas_shape[2 * s + 1];
        cut[m] = inset[i];
        from[m] = canvas_start[s] + ((int64)band * height + corner[2 * i + 1]) * width[m] + corner[2 * i];
        to[m] = tile[m] < 0 ? -1 : (((int64)run * n_source + i) * n_band + band) * n_basis;
    }
    __syncthreads();
    const bool inside = column < n_basis;
    const float* entries = table + (((int64)basis[tile[0]] * n_band + band) * window * window + first_pixel) * n_basis +
                           (inside ? column : 0);
    gemm(
        shared, n_inner,
        [&](int k, int first, float* next) {
            const int p = first_pixel + k, y = p / window, x = p - y * window;
            const int edge = min(min(x, y), window - 1 - max(x, y));  // pixels between it and the window's edge
#pragma unroll
            for (int i = 0; i < LOAD_ROWS; ++i) {
                const int m = first + LOAD_STEP * i;
                next[i] = k < n_inner && edge >= cut[m] ? image[from[m] + (int64)y * width[m] + x] : 0.0f;
            }
        },
        entries, n_basis,
        [&](int m, float value) {
            if (to[m] >= 0 && inside) out[to[m] + column] = value;
        });
}

// Add the results of the runs, in order, for sources that are drawn.
extern "C" __global__ void __launch_bounds__(256) add_parts(
    const int* __restrict__ row_tile, const float* __restrict__ parts, int n_source, int n_value, int n_part,
    float* __restrict__ out) {
    const int i = row_tile[blockIdx.x];
    if (i < 0) return;
    for (int k = threadIdx.x; k < n_value; k += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 8
        for (int run = 0; run < n_part; ++run) sum += parts[((int64)run * n_source + i) * n_value + k];
        out[(int64)i * n_value + k] = sum;
    }
}

// Weighted sums over the cells of extended sources' full windows, without the window and without pixels off the image:
// the adjoint of the interpolation between cells.
extern "C" __global__ void __launch_bounds__(256) gather_cells(
    const int* __restrict__ row_tile, const int* __restrict__ extended, const int* __restrict__ scene,
    const int* __restrict__ corner, const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape,
    const float* __restrict__ image, int n_band, int window, int margin, int binning, float* __restrict__ cells) {
    const int i = row_tile[blockIdx.x], band = blockIdx.y;
    if (i < 0 || !extended[i]) return;
    const int s = scene[i], height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    const float* plane = image + canvas_start[s] + (int64)band * height * width;
    const int full = window + 2 * margin, side = full / binning;
    const int left = corner[2 * i] - margin, top = corner[2 * i + 1] - margin;
    float* out = cells + ((int64)i * n_band + band) * side * side;
    for (int cell = threadIdx.x; cell < side * side; cell += blockDim.x) {
        const int row = cell / side, column = cell % side;
        float sum = 0.0f;
        for (int y = max((row - 1) * binning, 0); y < min((row + 2) * binning, full); ++y) {
            if (top + y < 0 || top + y >= height) continue;
            const Axis v = between(y, side, binning);
            const float down = (v.near == row ? 1.0f - v.share : 0.0f) + (v.far == row ? v.share : 0.0f);
            for (int x = max((column - 1) * binning, 0); x < min((column + 2) * binning, full); ++x) {
                if (left + x < 0 || left + x >= width) continue;
                if (x >= margin && x < margin + window && y >= margin && y < margin + window) continue;
                const Axis h = between(x, side, binning);
                const float across = (h.near == column ? 1.0f - h.share : 0.0f) + (h.far == column ? h.share : 0.0f);
                sum += down * across * plane[(int64)(top + y) * width + left + x];
            }
        }
        out[cell] = sum;
    }
}
