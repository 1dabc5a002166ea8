// Pixels where a source's light is significant, all bands together: a block per source. Sums are float64. The
// significance of a pixel is float32, summed in the order of the bands, as on the CPU.
#include "cover.cuh"

__device__ static float block_max(float value, float* scratch) {
    const int t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] = fmaxf(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    const float largest = scratch[0];
    __syncthreads();
    return largest;
}

extern "C" __global__ void __launch_bounds__(256) footprint(
    const int* __restrict__ scene, const int* __restrict__ corner, const int* __restrict__ extended,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ stamps,
    const float* __restrict__ cells, const float* __restrict__ weight, int n_band, int window, int margin, int binning,
    int n_cell, float significant, float core, int n_word, int* __restrict__ out) {
    __shared__ double scratch[256];
    __shared__ float largest[256];
    __shared__ int inside[256];
    SHARED_MEMORY(float, mean);  // [n_band]
    const int64 i = blockIdx.x;
    const int t = threadIdx.x;
    if (scene[i] < 0) return;
    const bool whole = cells && extended[i];
    const Cover cover(i, whole, scene, corner, canvas_shape, window, margin);
    const int64 n_canvas = (int64)cover.height * cover.width;
    const float* plane = weight + canvas_start[cover.scene];
    Stamp stamp = {nullptr, nullptr, corner[2 * i], corner[2 * i + 1], window, margin, binning};
    for (int band = 0; band < n_band; ++band) {
        const int64 row = i * n_band + band;
        stamp.core = stamps + row * window * window;
        stamp.cells = whole ? cells + row * n_cell : nullptr;
        double total = 0.0, weighted = 0.0;
        for (int p = t; p < cover.n_pixel; p += 256) {
            const int x = cover.x(p), y = cover.y(p);
            const float value = stamp.at(x, y), square = value * value;
            total += square;
            weighted += plane[band * n_canvas + (int64)y * cover.width + x] * square;
        }
        total = block_sum(total, scratch);
        weighted = block_sum(weighted, scratch);
        if (t == 0) mean[band] = (float)(weighted / (total > 0.0 ? total : 1.0));
    }
    __syncthreads();
    auto significance = [&](int p) {
        const int x = cover.x(p), y = cover.y(p);
        float sum = 0.0f;
        for (int band = 0; band < n_band; ++band) {
            const int64 row = i * n_band + band;
            stamp.core = stamps + row * window * window;
            stamp.cells = whole ? cells + row * n_cell : nullptr;
            const float value = stamp.at(x, y);
            sum += mean[band] * (value * value);
        }
        return sum;
    };
    float peak = 0.0f;
    for (int p = t; p < cover.n_pixel; p += 256) peak = fmaxf(peak, significance(p));
    const float level = fminf(significant * significant, core * core * block_max(peak, largest));
    for (int start = 0; start < cover.n_pixel; start += 256) {
        const float here = start + t < cover.n_pixel ? significance(start + t) : 0.0f;
        inside[t] = here >= level && here > 0.0f;
        __syncthreads();
        if (t < 8) {
            unsigned word = 0;
            for (int bit = 0; bit < 32; ++bit) word |= (unsigned)inside[32 * t + bit] << bit;
            out[i * n_word + start / 32 + t] = (int)word;
        }
        __syncthreads();
    }
}
