// Inner products of all images of one source with all images of another, by a block of threads. Pixels come in tiles
// through shared memory. Sums of a tile are float32, sums of the tiles float64.
#pragma once
#include "kernel.cuh"

constexpr int PIXELS = 64;  // pixels of a tile

// `shared` holds 2 n_column (PIXELS + 1) floats. `value(side, column, p)` is image `column` of the first or second
// source at common pixel p; the first source's images are weighted. `out` is [n_column][n_column].
template <typename Value, typename Out>
__device__ __forceinline__ void inner_products(float* shared, int n_column, int n_pixel, const Value& value, Out* out) {
    float* first = shared;  // [n_column][PIXELS + 1]
    float* second = shared + n_column * (PIXELS + 1);
    for (int begin = 0; begin < n_column * n_column; begin += blockDim.x) {
        const int o = begin + threadIdx.x;
        const float* mine = first + (o / n_column) * (PIXELS + 1);
        const float* other = second + (o % n_column) * (PIXELS + 1);
        double sum = 0.0;
        for (int start = 0; start < n_pixel; start += PIXELS) {
            for (int k = threadIdx.x; k < 2 * n_column * PIXELS; k += blockDim.x) {
                const int p = k % PIXELS, side = k / PIXELS / n_column, column = k / PIXELS % n_column;
                (side ? second : first)[column * (PIXELS + 1) + p] =
                    start + p < n_pixel ? value(side, column, start + p) : 0.0f;
            }
            __syncthreads();
            if (o < n_column * n_column) {
                float part = 0.0f;
                for (int p = 0; p < PIXELS; ++p) part += mine[p] * other[p];
                sum += part;
            }
            __syncthreads();
        }
        if (o < n_column * n_column) out[o] = (Out)sum;
    }
}
