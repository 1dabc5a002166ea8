// Coefficients times a table of their folded basis: stamps, outskirts, products with Gram matrices.
#include "gemm.cuh"

extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 3) product(
    const int* __restrict__ row_tile, const int* __restrict__ basis, const int* __restrict__ chosen,
    const int* __restrict__ slot, const float* __restrict__ rows, const float* __restrict__ table, int n_band, int n_row, int n_inner, int n_column,
    int accumulate, float* __restrict__ out) {
    __shared__ GemmShared shared;
    __shared__ int64 from[TILE_ROWS], to[TILE_ROWS];  // rows of `rows` and `out`; -1: not to be written
    const int* tile = row_tile + (int64)blockIdx.y * TILE_ROWS;
    if (tile[0] < 0) return;  // no sources here
    const int band = blockIdx.z / n_row, r = blockIdx.z % n_row, column = blockIdx.x * TILE_COLUMNS + threadIdx.x;
    if (threadIdx.x < TILE_ROWS) {
        const int m = threadIdx.x, i = tile[m] < 0 ? tile[0] : tile[m];  // padding repeats a row; its result is dropped
        const int64 row = ((int64)i * n_band + band) * n_row + r;
        from[m] = row * n_inner;
        const int64 target = slot ? row + ((int64)slot[i] - i) * n_band * n_row : row;
        to[m] = tile[m] >= 0 && (!chosen || chosen[i]) ? target * n_column : -1;
    }
    __syncthreads();
    if (chosen) {
        bool some = false;
        for (int m = 0; m < TILE_ROWS; ++m) some |= to[m] >= 0;
        if (!some) return;
    }
    const bool inside = column < n_column;
    const float* entries = table + ((int64)basis[tile[0]] * n_band + band) * n_inner * n_column + (inside ? column : 0);
    gemm(
        shared, n_inner,
        [&](int k, int first, float* next) {
#pragma unroll
            for (int i = 0; i < LOAD_ROWS; ++i)
                next[i] = k < n_inner ? rows[from[first + LOAD_STEP * i] + k] : 0.0f;
        },
        entries, n_column,
        [&](int m, float value) {
            if (to[m] < 0 || !inside) return;
            float* target = out + to[m] + column;
            *target = accumulate ? *target + value : value;
        });
}
