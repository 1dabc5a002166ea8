// The middle of a canvas: a thread per pixel of a band.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(256) crop(const float* __restrict__ canvas, int height, int width,
                                                       int border, float* __restrict__ out) {
    const int n_x = width - 2 * border, n_y = height - 2 * border, band = blockIdx.y;
    const int64 i = global_index();
    if (i >= (int64)n_y * n_x) return;
    const int64 y = i / n_x + border, x = i % n_x + border;
    out[(int64)band * n_y * n_x + i] = canvas[((int64)band * height + y) * width + x];
}
