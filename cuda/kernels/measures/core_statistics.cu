// chi2 of the pixels that a source owns within a radius of its centre: a block per source. Pixels are
// float32, as on the CPU, the sum is float64.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(256) core_statistics(
    const int* __restrict__ scene, const int* __restrict__ number, const double* __restrict__ centre,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const int* __restrict__ owner,
    const float* __restrict__ data, const float* __restrict__ weight, const float* __restrict__ weights,
    const float* __restrict__ model, int n_band, double radius, double* __restrict__ out) {
    __shared__ double scratch[256];
    const int64 i = blockIdx.x;
    const int t = threadIdx.x, s = scene[i];
    if (s < 0) return;
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    const double x = centre[2 * i], y = centre[2 * i + 1];
    const int x0 = max((int)ceil(x - radius), 0), x1 = min((int)floor(x + radius) + 1, width);
    const int y0 = max((int)ceil(y - radius), 0), y1 = min((int)floor(y + radius) + 1, height);
    const int across = max(x1 - x0, 0), n_pixel = across * max(y1 - y0, 0);
    const int64 n_canvas = (int64)height * width;
    double chi2 = 0.0, n_weighted = 0.0, n_lost = 0.0;
    for (int p = t; p < n_pixel; p += 256) {
        const int ix = x0 + p % across, iy = y0 + p / across;
        const double dx = ix - x, dy = iy - y;
        const int64 pixel = (int64)iy * width + ix;
        if (owner[canvas_start[s] / n_band + pixel] != number[i] || dy * dy + dx * dx > radius * radius) continue;
        bool lost = false;
        for (int band = 0; band < n_band; ++band) {
            const int64 k = canvas_start[s] + band * n_canvas + pixel;
            const float residual = data[k] - model[k];
            chi2 += weight[k] * (residual * residual);
            n_weighted += weight[k] > 0.0f;
            lost = lost || weights[k] < 0.5f * weight[k];
        }
        n_lost += lost;
    }
    const double sums[] = {chi2, n_weighted, n_lost};
    for (int k = 0; k < 3; ++k) {
        const double sum = block_sum(sums[k], scratch);
        if (t == 0) out[3 * i + k] = sum;
    }
}
