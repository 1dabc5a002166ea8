// The misfit of sources' models, and their visible light, see engine/measure/systematic_error.py. misfit: a block per
// source; pixels are float32, as on the CPU, all sums float64. visible: a block per source and band.
#include "cover.cuh"

extern "C" __global__ void __launch_bounds__(256) misfit(
    const int* __restrict__ scene, const int* __restrict__ corner, const int64* __restrict__ canvas_start,
    const int* __restrict__ canvas_shape, const float* __restrict__ stamps, const double* __restrict__ latent,
    const float* __restrict__ data, const float* __restrict__ weight, const float* __restrict__ model,
    const double* __restrict__ edges, int n_edge, int n_band, int n_latent, int window, int half, int square,
    double* __restrict__ out) {
    __shared__ double scratch[256];
    SHARED_MEMORY(double, u);  // [side][side], then v, then the rings of the pixels
    const int64 i = blockIdx.x;
    const int t = threadIdx.x, s = scene[i], side = 2 * half;
    if (s < 0) return;
    double* v = u + side * side;
    int* ring = (int*)(v + side * side);
    const int height = canvas_shape[2 * s], width = canvas_shape[2 * s + 1], first = window / 2 - half;
    const double* offset = latent + i * n_latent + n_band;
    for (int p = t; p < side * side; p += 256) {
        const int x = p % side, y = p / side;
        double sum_u = 0.0, sum_v = 0.0;
        for (int band = 0; band < n_band; ++band) {
            const int64 pixel = canvas_start[s] + ((int64)band * height + corner[2 * i + 1] + first + y) * width +
                                corner[2 * i] + first + x;
            const float own = fmaxf(stamps[((i * n_band + band) * window + first + y) * window + first + x], 0.0f);
            const float light = own > 0.0f ? own * (own / fmaxf(model[pixel], own)) : 0.0f;
            const float weighted = weight[pixel] * light;
            sum_u += weighted * (data[pixel] - model[pixel]);
            sum_v += weighted * light;
        }
        u[p] = sum_u, v[p] = sum_v;
        const double radius = hypot(x - half - offset[0], y - half - offset[1]);
        int last = -1;
        while (last + 1 < n_edge && edges[last + 1] <= radius) ++last;
        ring[p] = last;
    }
    __syncthreads();
    double power = 0.0, found = 0.0;
    const int n_square = side / square;
    for (int q = t; q < n_square * n_square; q += 256) {
        double sum_u = 0.0, sum_v = 0.0;
        for (int k = 0; k < square * square; ++k) {
            const int p = (q / n_square * square + k / square) * side + q % n_square * square + k % square;
            sum_u += u[p], sum_v += v[p];
        }
        power += sum_v * sum_v, found += sum_u * sum_u - sum_v;
    }
    power = block_sum(power, scratch);
    found = block_sum(found, scratch);
    if (t == 0) out[4 * i] = power, out[4 * i + 1] = found;
    power = found = 0.0;
    for (int r = 0; r < n_edge - 1; ++r) {
        double sum_u = 0.0, sum_v = 0.0;
        for (int p = t; p < side * side; p += 256)
            if (ring[p] == r) sum_u += u[p], sum_v += v[p];
        sum_u = block_sum(sum_u, scratch);
        sum_v = block_sum(sum_v, scratch);
        power += sum_v * sum_v, found += sum_u * sum_u - sum_v;
    }
    if (t == 0) out[4 * i + 2] = power, out[4 * i + 3] = found;
}

extern "C" __global__ void __launch_bounds__(256) visible(
    const int* __restrict__ scene, const int* __restrict__ corner, const int* __restrict__ extended,
    const int64* __restrict__ canvas_start, const int* __restrict__ canvas_shape, const float* __restrict__ stamps,
    const float* __restrict__ cells, const int* __restrict__ footprints, const float* __restrict__ weight, int n_band,
    int window, int margin, int binning, int n_cell, int n_word, double* __restrict__ out) {
    __shared__ double scratch[256];
    const int64 i = blockIdx.x, row = i * n_band + blockIdx.y;
    if (scene[i] < 0) return;
    const bool whole = cells && extended[i];
    const Cover cover(i, whole, scene, corner, canvas_shape, window, margin);
    const Stamp stamp = {stamps + row * window * window, whole ? cells + row * n_cell : nullptr, corner[2 * i],
                         corner[2 * i + 1], window, margin, binning};
    const float* plane = weight + canvas_start[cover.scene] + (int64)blockIdx.y * cover.height * cover.width;
    double sum = 0.0;
    for (int p = threadIdx.x; p < cover.n_pixel; p += 256) {
        if (!holds(footprints + i * n_word, p)) continue;
        const int x = cover.x(p), y = cover.y(p);
        if (plane[(int64)y * cover.width + x] > 0.0f) sum += stamp.at(x, y);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[row] = sum;
}
