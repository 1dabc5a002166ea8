// The loss of two models, under the likelihood around the first, in the pixels that a blend owns: a block per blend.
#include "likelihood.cuh"

extern "C" __global__ void __launch_bounds__(256) loss(
    const int* __restrict__ pixel_start, const int* __restrict__ blend_pixel, const int* __restrict__ blend_scene,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ data,
    const float* __restrict__ weight, const float* __restrict__ model, const float* __restrict__ trial, float temper,
    float error, float clip, int robust, int n_band, double* __restrict__ out) {
    __shared__ double scratch[256];
    const int blend = blockIdx.x, s = blend_scene[blend];
    if (s < 0) return;
    const int n_canvas = canvas_shape[2 * s] * canvas_shape[2 * s + 1];
    double before = 0.0, after = 0.0;
    for (int k = pixel_start[blend] + (int)threadIdx.x; k < pixel_start[blend + 1]; k += blockDim.x)
        for (int band = 0; band < n_band; ++band) {
            const int64 i = canvas_start[s] + (int64)band * n_canvas + blend_pixel[k];
            if (weight[i] == 0.0f) continue;
            const PixelLikelihood likely(weight[i], model[i], temper, error, clip);
            const double bound = likely.bound;
            for (int which = 0; which < 2; ++which) {
                const float r = data[i] - (which ? trial : model)[i];
                const double t2 = likely.weight * (r * r);
                const double value = robust && t2 > bound ? 0.5 * bound * (1.0 + log(t2 / bound)) : 0.5 * t2;
                (which ? after : before) += value;
            }
        }
    before = block_sum(before, scratch);
    after = block_sum(after, scratch);
    if (threadIdx.x == 0) {
        out[2 * blend] = before;
        out[2 * blend + 1] = after;
    }
}
