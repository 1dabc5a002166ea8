// Images to images: out[n, o, y, x] = sum_{i, u, v} x[n, i, y s - p + u, x s - p + v] kernel[i, u, v, o] + bias[o].
//
// A product of matrices, one row for every pixel of out, whose operand is gathered on the way to shared memory.
// Bytes of a source: 4 (in + out); flops: 2 out in_channels kernel_area.
#include "network_tile.cuh"

extern "C" __global__ void __launch_bounds__(128) network_convolution(const float* __restrict__ x, const float* __restrict__ kernel, const float* __restrict__ bias, float* __restrict__ out, int n_source, int n_in, int height, int width, int n_out, int out_height, int out_width, int size_y, int size_x, int stride_y, int stride_x, int pad_y, int pad_x) {
    using T = Tile<64, 32, 16, 4, 4, true>;
    __shared__ T::Shared shared;
    const int64 row0 = (int64)blockIdx.x * 64;
    const int column0 = blockIdx.y * 32, n_pixel = out_height * out_width, n_sum = n_in * size_y * size_x;
    const int64 n_row = (int64)n_source * n_pixel;
    T::multiply(
        shared, n_sum,
        [&](int r, int k) {
            const int64 row = row0 + r;
            if (row >= n_row || k >= n_sum) return 0.0f;
            const int pixel = row % n_pixel, channel = k / (size_y * size_x), tap = k % (size_y * size_x);
            const int y = pixel / out_width * stride_y - pad_y + tap / size_x;
            const int column = pixel % out_width * stride_x - pad_x + tap % size_x;
            const bool inside = y >= 0 && y < height && column >= 0 && column < width;
            return inside ? x[((row / n_pixel * n_in + channel) * height + y) * width + column] : 0.0f;
        },
        [&](int k, int c) { return column0 + c < n_out && k < n_sum ? kernel[(int64)k * n_out + column0 + c] : 0.0f; },
        [&](int r, int c, float value) {
            const int64 row = row0 + r;
            const int o = column0 + c;
            if (row < n_row && o < n_out)
                out[(row / n_pixel * n_out + o) * n_pixel + row % n_pixel] = bias ? value + bias[o] : value;
        });
}
