// A tile of a product of matrices, for network_matmul.cu and network_convolution.cu.
//
// A block has ROWS x COLUMNS results, a thread PER_ROW x PER_COLUMN of them, so that a number read from shared memory
// serves several multiplications. Shared memory has two stages; one is filled while the other is used. Every sum runs
// over k upwards with one accumulator, so that bits depend on neither the tile nor the number of rows.
#pragma once
#include "kernel.cuh"

template <int ROWS, int COLUMNS, int DEPTH, int PER_ROW, int PER_COLUMN, bool ROWS_FIRST = false>
struct Tile {
    static constexpr int ACROSS = COLUMNS / PER_COLUMN;
    static constexpr int THREADS = ROWS / PER_ROW * ACROSS;
    // 4 more: rows that begin at different banks, still multiples of 16 bytes
    static constexpr int A_WIDTH = ROWS + 4, W_WIDTH = COLUMNS + 4;
    static constexpr int N_A = ROWS * DEPTH / THREADS, N_W = COLUMNS * DEPTH / THREADS;
    static_assert(ROWS * DEPTH % THREADS == 0 && COLUMNS * DEPTH % THREADS == 0, "loads divide evenly");

    struct alignas(16) Shared {
        float a[2][DEPTH * A_WIDTH];
        float w[2][DEPTH * W_WIDTH];
    };

    // `load_a(row in the tile, k)` and `load_w(k, column in the tile)` return 0 outside the matrices;
    // `store(row, column, value)` checks bounds. Neighbouring threads load A along k, or along rows if ROWS_FIRST.
    template <typename LoadA, typename LoadW, typename Store>
    static __device__ __forceinline__ void multiply(Shared& shared, int n_sum, LoadA load_a, LoadW load_w, Store store) {
        const int t = threadIdx.x;
        const int row = t / ACROSS * PER_ROW, column = t % ACROSS * PER_COLUMN;
        float next_a[N_A], next_w[N_W], sum[PER_ROW][PER_COLUMN];
#pragma unroll
        for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
            for (int c = 0; c < PER_COLUMN; ++c) sum[r][c] = 0.0f;

        auto fetch = [&](int k0) {
#pragma unroll
            for (int i = 0; i < N_A; ++i) {
                const int j = i * THREADS + t;
                next_a[i] = ROWS_FIRST ? load_a(j % ROWS, k0 + j / ROWS) : load_a(j / DEPTH, k0 + j % DEPTH);
            }
#pragma unroll
            for (int i = 0; i < N_W; ++i) {
                const int j = i * THREADS + t;
                next_w[i] = load_w(k0 + j / COLUMNS, j % COLUMNS);
            }
        };
        auto keep = [&](int stage) {
#pragma unroll
            for (int i = 0; i < N_A; ++i) {
                const int j = i * THREADS + t;
                const int place = ROWS_FIRST ? j / ROWS * A_WIDTH + j % ROWS : j % DEPTH * A_WIDTH + j / DEPTH;
                shared.a[stage][place] = next_a[i];
            }
#pragma unroll
            for (int i = 0; i < N_W; ++i) {
                const int j = i * THREADS + t;
                shared.w[stage][j / COLUMNS * W_WIDTH + j % COLUMNS] = next_w[i];
            }
        };

        fetch(0);
        keep(0);
        __syncthreads();
        for (int k0 = 0, stage = 0; k0 < n_sum; k0 += DEPTH, stage ^= 1) {
            const bool more = k0 + DEPTH < n_sum;
            if (more) fetch(k0 + DEPTH);
#pragma unroll
            for (int k = 0; k < DEPTH; ++k) {
                float a[PER_ROW], w[PER_COLUMN];
                read<PER_ROW>(shared.a[stage] + k * A_WIDTH + row, a);
                read<PER_COLUMN>(shared.w[stage] + k * W_WIDTH + column, w);
#pragma unroll
                for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
                    for (int c = 0; c < PER_COLUMN; ++c) sum[r][c] = fmaf(a[r], w[c], sum[r][c]);
            }
            if (more) keep(stage ^ 1);
            __syncthreads();
        }
#pragma unroll
        for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
            for (int c = 0; c < PER_COLUMN; ++c) store(row + r, column + c, sum[r][c]);
    }

    template <int N>
    static __device__ __forceinline__ void read(const float* from, float (&to)[N]) {
        if constexpr (N % 4 == 0) {
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                const float4 four = *reinterpret_cast<const float4*>(from + i);
                to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) to[i] = from[i];
        }
    }
};
