// block_inverse: a block per source of a blend of more than `largest` sources, its matrix in shared memory. Lower
// triangle: Cholesky factor C of the scaled matrix; upper: the inverse of C, transposed. A^-1 = C^-T C^-1: symmetric to
// the bit.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(64) block_inverse(
    const int* __restrict__ blend, const int* __restrict__ blend_start, const int* __restrict__ own,
    const double* __restrict__ blocks, int largest, int n, double ridge, double* __restrict__ inverse) {
    SHARED_MEMORY(double, matrix);
    double* scale = matrix + n * n;
    double* reciprocal = scale + n;  // diagonal of the inverse of C
    const int64 i = blockIdx.x;
    const int t = threadIdx.x, row = t / 8, column = t % 8, mine = blend[i];
    if (mine < 0 || blend_start[mine + 1] - blend_start[mine] <= largest) return;
    const double* block = blocks + (int64)own[i] * n * n;
    for (int l = t; l < n; l += 64) scale[l] = 1.0 / sqrt(block[l * n + l]);
    __syncthreads();
    for (int r = row; r < n; r += 8)
        for (int c = column; c < n; c += 8)
            matrix[r * n + c] = block[r * n + c] * scale[r] * scale[c] + (r == c ? ridge : 0.0);
    for (int k = 0; k < n; ++k) {
        __syncthreads();
        const double pivot = matrix[k * n + k];
        const double over = 1.0 / sqrt(pivot > 0.0 ? pivot : -1.0);  // not positive: all of the inverse is NaN
        for (int r = k + 1 + t; r < n; r += 64) matrix[r * n + k] *= over;
        if (t == 0) reciprocal[k] = over;
        __syncthreads();
        for (int r = k + 1 + row; r < n; r += 8)
            for (int c = k + 1 + column; c <= r; c += 8) matrix[r * n + c] -= matrix[r * n + k] * matrix[c * n + k];
    }
    __syncthreads();
    for (int j = t; j < n; j += 64)  // column j of the inverse of C, in row j of the upper triangle
        for (int r = j + 1; r < n; ++r) {
            double sum = matrix[r * n + j] * reciprocal[j];
            for (int k = j + 1; k < r; ++k) sum += matrix[r * n + k] * matrix[j * n + k];
            matrix[j * n + r] = -sum * reciprocal[r];
        }
    __syncthreads();
    for (int r = row; r < n; r += 8)
        for (int c = column; c < n; c += 8) {
            const int low = min(r, c), high = max(r, c);
            double sum = reciprocal[high] * (low == high ? reciprocal[low] : matrix[low * n + high]);
            for (int k = high + 1; k < n; ++k) sum += matrix[low * n + k] * matrix[high * n + k];
            inverse[(i * n + r) * n + c] = sum * (scale[r] * scale[c]);
        }
}
