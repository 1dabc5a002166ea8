// gram: a block per 16 x 16 entries of the upper triangle, a thread per entry; products and sums in float64, in the
// order of the columns, and so exactly symmetric.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(256) gram(const float* __restrict__ rows, int n_row, int n_column,
                                                       float* __restrict__ out) {
    __shared__ double first[16][33], second[16][33];
    if (blockIdx.y > blockIdx.x) return;
    rows += (int64)blockIdx.z * n_row * n_column;
    out += (int64)blockIdx.z * n_row * n_row;
    const int t = threadIdx.x, i = t / 16, j = t % 16, i0 = blockIdx.y * 16, j0 = blockIdx.x * 16;
    double sum = 0.0;
    for (int q0 = 0; q0 < n_column; q0 += 32) {
        __syncthreads();
        for (int e = t; e < 16 * 32; e += 256) {
            const int r = e / 32, q = q0 + e % 32;
            first[r][e % 32] = q < n_column && i0 + r < n_row ? rows[(int64)(i0 + r) * n_column + q] : 0.0f;
            second[r][e % 32] = q < n_column && j0 + r < n_row ? rows[(int64)(j0 + r) * n_column + q] : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int q = 0; q < 32; ++q) sum += first[i][q] * second[j][q];
    }
    if (i0 + i >= n_row || j0 + j >= n_row) return;
    out[(int64)(i0 + i) * n_row + j0 + j] = (float)sum;
    if (blockIdx.y < blockIdx.x) out[(int64)(j0 + j) * n_row + i0 + i] = (float)sum;  // else another thread has it
}
