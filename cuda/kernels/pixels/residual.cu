// Robust weights and the weighted residual: a block owns a square of pixels of one band.
#include "likelihood.cuh"

extern "C" __global__ void __launch_bounds__(256) residual(
    const int* __restrict__ pixel_tile, const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape,
    const float* __restrict__ data, const float* __restrict__ weight, const float* __restrict__ model, float temper,
    float error, float clip, int robust, float* __restrict__ out_weights, float* __restrict__ out_residual) {
    const int64 tile = blockIdx.x;
    const int s = pixel_tile[3 * tile];
    if (s < 0) return;
    const int y = pixel_tile[3 * tile + 1] + threadIdx.y, x = pixel_tile[3 * tile + 2] + threadIdx.x;
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    if (y >= height || x >= width) return;
    const int64 i = canvas_start[s] + ((int64)blockIdx.y * height + y) * width + x;
    const PixelLikelihood likely(weight[i], model[i], temper, error, clip);
    const float r = data[i] - model[i], t2 = likely.weight * (r * r);
    const float w = robust && t2 > likely.bound ? likely.weight * (likely.bound / t2) : likely.weight;
    out_weights[i] = w;
    out_residual[i] = w * r;
}
