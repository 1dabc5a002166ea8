// out[b, m, n] = sum_k a[b, m, k] w[b, k, n] + bias[n], all with strides [elements].
//
// Bytes: 4 (M K + M N) a batch, and K N once, or a batch where w differs; flops: 2 M N K. A bundle's layers have K = 128
// to 320, so tall products are bound by arithmetic (8 x 8 numbers a thread), products of one source's few rows by memory.
#include "network_tile.cuh"

struct Strides {
    int64 batch;
    int row, column;  // 32 bits: within a tile's reach, and half the registers of 64
};

template <typename T>
__device__ __forceinline__ void product(const float* __restrict__ a, Strides at, const float* __restrict__ w,
                                        Strides wt, const float* __restrict__ bias, float* __restrict__ out,
                                        Strides ot, int n_row, int n_sum, int n_column, int n_tile, int rows,
                                        int columns) {
    __shared__ typename T::Shared shared;
    const int64 batch = blockIdx.x / n_tile;
    const int row0 = blockIdx.x % n_tile * rows, column0 = blockIdx.y * columns;
    a += batch * at.batch + (int64)row0 * at.row;
    w += batch * wt.batch + (int64)column0 * wt.column;
    out += batch * ot.batch + (int64)row0 * ot.row + (int64)column0 * ot.column;
    T::multiply(
        shared, n_sum,
        [&](int r, int k) { return row0 + r < n_row && k < n_sum ? a[r * at.row + k * at.column] : 0.0f; },
        [&](int k, int c) { return column0 + c < n_column && k < n_sum ? w[k * wt.row + c * wt.column] : 0.0f; },
        [&](int r, int c, float value) {
            if (row0 + r < n_row && column0 + c < n_column)
                out[r * ot.row + c * ot.column] = bias ? value + bias[column0 + c] : value;
        });
}

#define ARGUMENTS                                                                                                 \
    const float *__restrict__ a, int64 a_batch, int a_row, int a_column, const float *__restrict__ w,         \
        int64 w_batch, int w_row, int w_column, const float *__restrict__ bias, float *__restrict__ out,      \
        int64 out_batch, int out_row, int out_column, int n_row, int n_sum, int n_column, int n_tile
#define PASS(rows, columns)                                                                                           \
    a, {a_batch, a_row, a_column}, w, {w_batch, w_row, w_column}, bias, out, {out_batch, out_row, out_column}, n_row, \
        n_sum, n_column, n_tile, rows, columns

// Many rows.
extern "C" __global__ void __launch_bounds__(128) network_matmul(ARGUMENTS) {
    product<Tile<128, 64, 8, 8, 8>>(PASS(128, 64));
}

// Few rows, or too few rows to fill a GPU with large tiles.
extern "C" __global__ void __launch_bounds__(128) network_matmul_small(ARGUMENTS) {
    product<Tile<32, 64, 16, 4, 4>>(PASS(32, 64));
}

// Up to four rows a batch.
extern "C" __global__ void __launch_bounds__(128) network_matmul_thin(ARGUMENTS) {
    product<Tile<4, 128, 32, 4, 1>>(PASS(4, 128));
}

// A few columns: 32 threads share a sum, 4 numbers a block. Here n_tile is the number of results.
extern "C" __global__ void __launch_bounds__(128) network_matmul_dot(ARGUMENTS) {
    __shared__ float part[128];
    const int t = threadIdx.x % 32;
    const int64 i = (int64)blockIdx.x * 4 + threadIdx.x / 32;
    const int column = i % n_column, row = i / n_column % n_row;
    const int64 batch = i / n_column / n_row;
    float sum = 0.0f;
    if (i < n_tile) {
        const float *from = a + batch * a_batch + (int64)row * a_row, *by = w + batch * w_batch + (int64)column * w_column;
        for (int k = t; k < n_sum; k += 32) sum = fmaf(from[k * a_column], by[k * w_row], sum);
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 16; half > 0; half /= 2) {
        if (t < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (t == 0 && i < n_tile)
        out[batch * out_batch + (int64)row * out_row + (int64)column * out_column] =
            bias ? part[threadIdx.x] + bias[column] : part[threadIdx.x];
}
