// Number of pixels where a source's light is significant, on its canvas or off it: a block per source.
#include "stamp.cuh"

extern "C" __global__ void __launch_bounds__(256) light_area(
    const int* __restrict__ scene, const int* __restrict__ extended, const float* __restrict__ stamps,
    const float* __restrict__ cells, const double* __restrict__ weight, int n_band, int window, int margin, int binning,
    int n_cell, double threshold, int* __restrict__ out) {
    __shared__ int scratch[256];
    const int64 i = blockIdx.x;
    if (scene[i] < 0) return;
    const bool whole = cells && extended[i];
    const int around = whole ? margin : 0, size = window + 2 * around;
    int area = 0;
    for (int p = threadIdx.x; p < size * size; p += 256) {
        double significance = 0.0;
        for (int band = 0; band < n_band; ++band) {
            const int64 row = i * n_band + band;
            const Stamp stamp = {stamps + row * window * window, whole ? cells + row * n_cell : nullptr, around, around,
                                 window, margin, binning};
            const double value = stamp.at(p % size, p / size);
            significance += weight[row] * (value * value);
        }
        area += significance > threshold;
    }
    area = block_sum(area, scratch);
    if (threadIdx.x == 0) out[i] = area;
}
