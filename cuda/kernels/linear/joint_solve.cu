// joint_solve: a block per blend, 16 by 16 threads. The lower triangle of the scaled matrix lies in global memory and is
// factored in place, L D L'; the right-hand side is eliminated along with it. As there are no square roots, a
// matrix that rounding made indefinite still has a solution, as with the CPU's LU factors.
#include "members.cuh"

extern "C" __global__ void __launch_bounds__(256) joint_solve(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const int* __restrict__ pair_span,
    const int* __restrict__ pairs, const double* __restrict__ blocks, const double* __restrict__ target,
    const int64* __restrict__ matrix_start, int largest, int n_latent, double ridge, double* matrices,
    double* __restrict__ step) {
    SHARED_MEMORY(double, shared);
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= 0 || n > largest) return;
    const int* members = blend_source + start;
    const int t = threadIdx.x, row = t / 16, column = t % 16, size = n * n_latent;
    double* matrix = matrices + matrix_start[blend];
    double* scale = shared;
    double* right = scale + size;
    double* pivots = right + size;  // the column below the present pivot
    double* diagonal = pivots + size;

    for (int64 e = t; e < (int64)size * size; e += 256) matrix[e] = 0.0;
    __syncthreads();
    for (int p = pair_span[2 * blend]; p < pair_span[2 * blend + 1]; ++p) {
        const int i = rank_of(pairs[2 * (int64)p], members, n), j = rank_of(pairs[2 * (int64)p + 1], members, n);
        for (int e = t; e < n_latent * n_latent; e += 256) {
            const int l = e / n_latent, k = e - l * n_latent;
            matrix[((int64)j * n_latent + k) * size + i * n_latent + l] = blocks[(int64)p * n_latent * n_latent + e];
        }
    }
    __syncthreads();
    for (int r = t; r < size; r += 256) {
        scale[r] = 1.0 / sqrt(matrix[(int64)r * size + r]);
        right[r] = target[(int64)members[r / n_latent] * n_latent + r % n_latent] * scale[r];
    }
    __syncthreads();
    for (int r = row; r < size; r += 16)
        for (int c = column; c <= r; c += 16) {
            const int64 at = (int64)r * size + c;
            matrix[at] = matrix[at] * scale[r] * scale[c] + (r == c ? ridge : 0.0);
        }
    __syncthreads();
    for (int k = 0; k < size; ++k) {
        const double over = 1.0 / matrix[(int64)k * size + k], known = right[k];
        for (int r = k + 1 + t; r < size; r += 256) pivots[r] = matrix[(int64)r * size + k];
        __syncthreads();
        for (int r = k + 1 + row; r < size; r += 16) {
            const double factor = pivots[r] * over;
            for (int c = k + 1 + column; c <= r; c += 16) matrix[(int64)r * size + c] -= factor * pivots[c];
            if (column == 0) {
                matrix[(int64)r * size + k] = factor;
                right[r] -= factor * known;
            }
        }
        if (t == 0) diagonal[k] = over;
        __syncthreads();
    }
    for (int r = t; r < size; r += 256) right[r] *= diagonal[r];
    __syncthreads();
    for (int k = size - 1; k > 0; --k) {
        const double known = right[k];
        for (int r = t; r < k; r += 256) right[r] -= matrix[(int64)k * size + r] * known;
        __syncthreads();
    }
    for (int r = t; r < size; r += 256)
        step[(int64)members[r / n_latent] * n_latent + r % n_latent] = right[r] * scale[r];
}
