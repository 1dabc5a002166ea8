// The shares of sources in the light of a scene, see engine/measure/light_shares.py. light: a block owns a square of
// pixels of one band and adds the sources that touch it, in their order. share: a block per source and band; products
// are float32, as on the CPU, sums float64.
#include "cover.cuh"

extern "C" __global__ void __launch_bounds__(256) light(
    const int* __restrict__ pixel_tile, const int* __restrict__ tile_start, const int* __restrict__ tile_source,
    const int* __restrict__ scene, const int* __restrict__ corner, const int* __restrict__ extended,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ stamps,
    const float* __restrict__ cells, const int* __restrict__ footprints, const float* __restrict__ weight, int n_band,
    int window, int margin, int binning, int n_cell, int n_word, float* __restrict__ out) {
    const int64 tile = blockIdx.x;
    const int band = blockIdx.y, s = pixel_tile[3 * tile];
    if (s < 0) return;
    const int y = pixel_tile[3 * tile + 1] + threadIdx.y, x = pixel_tile[3 * tile + 2] + threadIdx.x;
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1];
    if (y >= height || x >= width) return;
    const int64 pixel = canvas_start[s] + ((int64)band * height + y) * width + x;
    float sum = 0.0f;
    bool covered = false;
    for (int k = tile_start[tile]; k < tile_start[tile + 1]; ++k) {
        const int64 i = tile_source[k], row = i * n_band + band;
        const bool whole = cells && extended[i];
        const int p = Cover(i, whole, scene, corner, canvas_shape, window, margin).number(x, y);
        if (p < 0) continue;
        const Stamp stamp = {stamps + row * window * window, whole ? cells + row * n_cell : nullptr, corner[2 * i],
                             corner[2 * i + 1], window, margin, binning};
        sum += fmaxf(stamp.at(x, y), 0.0f);
        covered = covered || holds(footprints + i * n_word, p);
    }
    out[pixel] = covered && weight[pixel] > 0.0f ? sum : 0.0f;
}

extern "C" __global__ void __launch_bounds__(256) share(
    const int* __restrict__ scene, const int* __restrict__ corner, const int* __restrict__ extended,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ stamps,
    const float* __restrict__ cells, const int* __restrict__ footprints, const float* __restrict__ data,
    const float* __restrict__ weight, const float* __restrict__ model, const float* __restrict__ light, int n_band,
    int window, int margin, int binning, int n_cell, int n_word, double* __restrict__ out) {
    __shared__ double scratch[256];
    const int64 i = blockIdx.x, row = i * n_band + blockIdx.y;
    const int t = threadIdx.x;
    if (scene[i] < 0) return;
    const bool whole = cells && extended[i];
    const Cover cover(i, whole, scene, corner, canvas_shape, window, margin);
    const Stamp stamp = {stamps + row * window * window, whole ? cells + row * n_cell : nullptr, corner[2 * i],
                         corner[2 * i + 1], window, margin, binning};
    const int64 plane = canvas_start[cover.scene] + (int64)blockIdx.y * cover.height * cover.width;
    double gain = 0.0, noise = 0.0, overlap = 0.0, own = 0.0, everybody = 0.0;
    float largest = -1e38f;
    for (int p = t; p < cover.n_pixel; p += 256) {
        const int x = cover.x(p), y = cover.y(p);
        const int64 pixel = plane + (int64)y * cover.width + x;
        const float value = stamp.at(x, y), total = model[pixel];
        const float part = light[pixel] > 0.0f ? fmaxf(value, 0.0f) / light[pixel] : 0.0f;
        if (part > 0.0f) {
            gain += part * (data[pixel] - total);
            noise += part * part / weight[pixel];
        }
        const float neighbours = holds(footprints + i * n_word, p) ? total - value : 0.0f;
        overlap += neighbours;
        largest = fmaxf(largest, neighbours);
        own += value * value;
        everybody += value * total;
    }
    const double sums[] = {gain, noise, overlap, own, everybody};
    double* result = out + 6 * row;
    for (int k = 0; k < 5; ++k) {
        const double sum = block_sum(sums[k], scratch);
        if (t == 0) result[k] = sum;
    }
    scratch[t] = largest;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (t < half) scratch[t] = max(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    if (t == 0) result[5] = scratch[0];
}
