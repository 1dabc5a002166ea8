// fold_convolve: a direct circular convolution. A block draws 4 x 32 pixels of 64 functions, a thread 4 pixels in a row
// of 8 functions: a warp has all pixels of its 8, so that their values are broadcast. One step along the stamp's row
// moves the pixels' kernel values by one register and loads one more. Sums of a row are float32; rows are added with
// compensation, else the 20,000 terms of a pixel leave 5e-7 of the maximum.
#include "kernel.cuh"

constexpr int FUNCTIONS = 64, ROWS = 4, COLUMNS = 32, CHUNK = 32;
constexpr int REACH = COLUMNS + CHUNK - 1;  // kernel values in a row that a chunk of a stamp's row meets
constexpr int PITCH = 65;  // 1 modulo 4: the four rows of a warp lie in different banks

__device__ inline int wrapped(int i, int n) { return (i % n + n) % n; }

extern "C" __global__ void __launch_bounds__(256, 2) fold_convolve(
    const float* __restrict__ basis, const float* __restrict__ kernel, int n_basis, int size, int n, int full,
    float* __restrict__ whole) {
    __shared__ float4 functions[CHUNK][FUNCTIONS / 4];
    __shared__ float reach[ROWS][PITCH];
    const int t = threadIdx.x, row = t % 32 / 8, group = t % 8, own = t / 32 * 8;
    const int n_tile_x = (full + COLUMNS - 1) / COLUMNS;
    const int x0 = blockIdx.x % n_tile_x * COLUMNS, y0 = blockIdx.x / n_tile_x * ROWS, k0 = blockIdx.y * FUNCTIONS;
    kernel += (int64)blockIdx.z * n * n;

    float total[8][4], lost[8][4];
#pragma unroll
    for (int k = 0; k < 8; ++k)
#pragma unroll
        for (int m = 0; m < 4; ++m) total[k][m] = lost[k][m] = 0.0f;

    for (int i = 0; i < size; ++i) {
        float sum[8][4];
#pragma unroll
        for (int k = 0; k < 8; ++k)
#pragma unroll
            for (int m = 0; m < 4; ++m) sum[k][m] = 0.0f;
        for (int j0 = 0; j0 < size; j0 += CHUNK) {
            __syncthreads();
            for (int e = t; e < CHUNK * FUNCTIONS; e += 256) {
                const int j = j0 + e / FUNCTIONS, k = k0 + e % FUNCTIONS;
                reinterpret_cast<float*>(functions)[e] =
                    j < size && k < n_basis ? basis[((int64)i * size + j) * n_basis + k] : 0.0f;
            }
            if (t < ROWS * REACH) {
                const int r = t / REACH, c = t % REACH;
                reach[r][c] = kernel[(int64)wrapped(y0 + r - i, n) * n + wrapped(x0 + c - j0 - (CHUNK - 1), n)];
            }
            __syncthreads();
            const float* mine = &reach[row][4 * group + CHUNK - 1];
            float d[4];  // value of pixel m at step j: d[(m - j) % 4]
#pragma unroll
            for (int m = 0; m < 4; ++m) d[m] = mine[m];
            const int n_step = min(CHUNK, size - j0);
            for (int j = 0; j < n_step; j += 4) {  // steps beyond the stamp meet zeros
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    const float4 low = functions[j + u][own / 4];
                    const float4 high = functions[j + u][own / 4 + 1];
                    const float f[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                    for (int k = 0; k < 8; ++k)
#pragma unroll
                        for (int m = 0; m < 4; ++m) sum[k][m] += f[k] * d[(m - u) & 3];
                    if (j + u + 1 < CHUNK) d[(3 - u) & 3] = mine[-(j + u + 1)];
                }
            }
        }
#pragma unroll
        for (int k = 0; k < 8; ++k)
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const float change = sum[k][m] - lost[k][m], after = total[k][m] + change;
                lost[k][m] = (after - total[k][m]) - change;
                total[k][m] = after;
            }
    }
    const int y = y0 + row;
#pragma unroll
    for (int k = 0; k < 8; ++k)
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const int x = x0 + 4 * group + m, function = k0 + own + k;
            if (x < full && y < full && function < n_basis)
                whole[(((int64)blockIdx.z * n_basis + function) * full + y) * full + x] = total[k][m];
        }
}

// fold_cut: every `step`-th pixel of side x side, from (first, first) on, and the transpose; through tiles of 32 x 32.
extern "C" __global__ void __launch_bounds__(256) fold_cut(
    const float* __restrict__ whole, int n_basis, int full, int first, int step, int side, float* __restrict__ out,
    float* __restrict__ out_t) {
    __shared__ float tile[32][33];
    const int n = side * side, q0 = blockIdx.x * 32, k0 = blockIdx.y * 32;
    whole += (int64)blockIdx.z * n_basis * full * full;
    out += (int64)blockIdx.z * n_basis * n;
    out_t += (int64)blockIdx.z * n_basis * n;
    const int q = q0 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += 8) {
        const int k = k0 + r;
        if (q < n && k < n_basis) {
            const int y = first + q / side * step, x = first + q % side * step;
            const float value = whole[((int64)k * full + y) * full + x];
            out[(int64)k * n + q] = value;
            tile[r][threadIdx.x] = value;
        }
    }
    __syncthreads();
    const int k = k0 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += 8)
        if (q0 + r < n && k < n_basis) out_t[(int64)(q0 + r) * n_basis + k] = tile[threadIdx.x][r];
}
