// The product of a tile of 64 rows with 128 columns of a table, in float32. Each of 128 threads has 8 rows by 8 columns:
// four 16-byte reads of shared memory serve 64 multiplications. Shared memory has two stages; one is filled while the
// other is used. The sum over the inner index runs upwards with one accumulator, so that a row's bits depend on that row
// alone.
#pragma once
#include "kernel.cuh"

constexpr int TILE_ROWS = 64, TILE_COLUMNS = 128, TILE_INNER = 16, GEMM_THREADS = 128;
constexpr int LOAD_ROWS = TILE_ROWS * TILE_INNER / GEMM_THREADS, LOAD_STEP = GEMM_THREADS / TILE_INNER;
static_assert(GEMM_THREADS == TILE_COLUMNS, "a thread loads and stores one column");

struct alignas(16) GemmShared {
    float rows[2][TILE_INNER][TILE_ROWS + 4];  // 4 more: rows begin at other banks, still at multiples of 16 bytes
    float table[2][TILE_INNER][TILE_COLUMNS];
};

__device__ __forceinline__ void read_four(const float* from, float* to) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ __forceinline__ void write_four(const float* from, float* to) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

// `rows(k, first, next)` loads rows first, first + LOAD_STEP, .. at inner index k, and zeros from n_inner on. `table`
// points to the thread's column; the inner index steps by `stride`. `store(m, value)` takes the result of row m in the
// thread's column. Rows and columns outside may load any number; `store` must drop their results.
template <typename Rows, typename Store>
__device__ __forceinline__ void gemm(GemmShared& shared, int n_inner, const Rows& rows,
                                     const float* __restrict__ table, int stride, const Store& store) {
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    // A warp has 32 rows by 64 columns, a thread 4 rows by 4 columns of each quarter of them. A 16-byte read serves 8
    // lanes at a time: they read neighbouring entries of the table, and the same entries of the rows.
    const int down = warp / 2 * 32 + lane / 8 * 4, across = warp % 2 * 64 + lane % 8 * 4;
    const int load_inner = t % TILE_INNER, load_row = t / TILE_INNER;
    float sum[8][8], next_row[LOAD_ROWS], next_entry[TILE_INNER];
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = 0.0f;

    auto fetch = [&](int k0) {
        rows(k0 + load_inner, load_row, next_row);
        const float* from = table + (int64)k0 * stride;
        if (k0 + TILE_INNER <= n_inner) {
#pragma unroll
            for (int k = 0; k < TILE_INNER; ++k) next_entry[k] = from[(int64)k * stride];
        } else {
#pragma unroll
            for (int k = 0; k < TILE_INNER; ++k) next_entry[k] = k0 + k < n_inner ? from[(int64)k * stride] : 0.0f;
        }
    };
    auto keep = [&](int stage) {
#pragma unroll
        for (int i = 0; i < LOAD_ROWS; ++i) shared.rows[stage][load_inner][load_row + LOAD_STEP * i] = next_row[i];
#pragma unroll
        for (int k = 0; k < TILE_INNER; ++k) shared.table[stage][k][t] = next_entry[k];
    };

    fetch(0);
    keep(0);
    __syncthreads();
    for (int k0 = 0, stage = 0; k0 < n_inner; k0 += TILE_INNER, stage ^= 1) {
        const bool more = k0 + TILE_INNER < n_inner;
        if (more) fetch(k0 + TILE_INNER);  // on its way while this tile is multiplied
#pragma unroll
        for (int k = 0; k < TILE_INNER; ++k) {
            float a[8], b[8];
            read_four(shared.rows[stage][k] + down, a);
            read_four(shared.rows[stage][k] + down + 16, a + 4);
            read_four(shared.table[stage][k] + across, b);
            read_four(shared.table[stage][k] + across + 32, b + 4);
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[i][j] += a[i] * b[j];
        }
        if (more) keep(stage ^ 1);
        __syncthreads();
    }

    // Sums go through shared memory, 16 rows at a time, so that whole rows of the result are written.
#pragma unroll
    for (int round = 0; round < 4; ++round) {
        float(*staged)[TILE_COLUMNS] = shared.table[round % 2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float* line = staged[(warp / 2 * 4 + lane / 8) * 2 + i];
            write_four(sum[2 * round + i], line + across);
            write_four(sum[2 * round + i] + 4, line + across + 32);
        }
        __syncthreads();
#pragma unroll
        for (int line = 0; line < TILE_INNER; ++line) {
            const int half = line / 8, group = line / 2 % 4;
            store(half * 32 + round / 2 * 16 + group * 4 + round % 2 * 2 + line % 2, staged[line][t]);
        }
    }
}
