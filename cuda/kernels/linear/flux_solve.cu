// flux_solve: a block per blend and band, its matrix in shared memory. Lower triangle: Cholesky factor C of the scaled
// matrix; upper: the inverse of C, transposed. A^-1 = C^-T C^-1, so that its diagonal is a sum of squares.
#include "members.cuh"

extern "C" __global__ void __launch_bounds__(64) flux_solve(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const int* __restrict__ pair_start,
    const int* __restrict__ pairs, const double* __restrict__ values, const double* __restrict__ target, int n_band,
    double ridge, double* __restrict__ flux, double* __restrict__ sigma) {
    SHARED_MEMORY(double, matrix);
    const int blend = blockIdx.x, band = blockIdx.y, t = threadIdx.x;
    const int start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= 0) return;
    const int* members = blend_source + start;
    double* scale = matrix + n * n;
    double* right = scale + n;
    double* half = right + n;
    double* reciprocal = half + n;  // diagonal of the inverse of C

    for (int e = t; e < n * n; e += 64) matrix[e] = 0.0;
    __syncthreads();
    for (int p = pair_start[blend] + t; p < pair_start[blend + 1]; p += 64) {
        const int i = rank_of(pairs[2 * (int64)p], members, n), j = rank_of(pairs[2 * (int64)p + 1], members, n);
        matrix[i * n + j] = matrix[j * n + i] = values[(int64)p * n_band + band];
    }
    __syncthreads();
    for (int m = t; m < n; m += 64) {
        const double diagonal = matrix[m * n + m];
        scale[m] = diagonal > 0.0 ? 1.0 / sqrt(diagonal) : 0.0;
        right[m] = scale[m] * target[(int64)members[m] * n_band + band];
    }
    __syncthreads();
    for (int e = t; e < n * n; e += 64) {
        const int r = e / n, c = e - r * n;
        matrix[e] = matrix[e] * scale[r] * scale[c] + (r == c ? ridge + (scale[r] > 0.0 ? 0.0 : 1.0) : 0.0);
    }
    for (int k = 0; k < n; ++k) {
        __syncthreads();
        // exact pivots are at least the ridge; less is the rounding of products near underflow
        const double root = sqrt(fmax(matrix[k * n + k], 0.5 * ridge));
        for (int r = k + 1 + t; r < n; r += 64) matrix[r * n + k] /= root;
        if (t == 0) reciprocal[k] = 1.0 / root;
        __syncthreads();
        const int rest = n - k - 1;
        for (int e = t; e < rest * rest; e += 64) {
            const int r = k + 1 + e / rest, c = k + 1 + e % rest;
            if (c <= r) matrix[r * n + c] -= matrix[r * n + k] * matrix[c * n + k];
        }
    }
    __syncthreads();
    for (int j = t; j < n; j += 64)  // column j of the inverse, in row j of the upper triangle
        for (int i = j + 1; i < n; ++i) {
            double sum = matrix[i * n + j] * reciprocal[j];
            for (int k = j + 1; k < i; ++k) sum += matrix[i * n + k] * matrix[j * n + k];
            matrix[j * n + i] = -sum * reciprocal[i];
        }
    __syncthreads();
    for (int i = t; i < n; i += 64) {
        double sum = reciprocal[i] * right[i];
        for (int j = 0; j < i; ++j) sum += matrix[j * n + i] * right[j];
        half[i] = sum;
    }
    __syncthreads();
    for (int j = t; j < n; j += 64) {
        double step = reciprocal[j] * half[j], variance = reciprocal[j] * reciprocal[j];
        for (int i = j + 1; i < n; ++i) {
            step += matrix[j * n + i] * half[i];
            variance += matrix[j * n + i] * matrix[j * n + i];
        }
        const int64 at = (int64)members[j] * n_band + band;
        flux[at] += step * scale[j];
        sigma[at] = scale[j] > 0.0 ? sqrt(variance) * scale[j] : 1.0 / scale[j];  // infinite: the band is unknown
    }
}

// flux_target: a warp per source and band.
extern "C" __global__ void __launch_bounds__(256) flux_target(
    const float* __restrict__ unit, const float* __restrict__ projected, int n_row, int n_basis,
    double* __restrict__ out) {
    __shared__ double scratch[256];
    const int64 row = (int64)blockIdx.x * 8 + threadIdx.y;
    double sum = 0.0;
    if (row < n_row)
        for (int k = threadIdx.x; k < n_basis; k += 32)
            sum += (double)unit[row * n_basis + k] * (double)projected[row * n_basis + k];
    sum = block_sum(sum, scratch + 32 * threadIdx.y);
    if (threadIdx.x == 0 && row < n_row) out[row] = sum;
}

// flux_coefficients: a warp per source and band.
extern "C" __global__ void __launch_bounds__(256) flux_coefficients(
    const float* __restrict__ unit, const double* __restrict__ flux, int n_row, int n_basis, float* __restrict__ out) {
    const int64 row = (int64)blockIdx.x * 8 + threadIdx.y;
    if (row >= n_row) return;
    const double mine = flux[row];
    for (int64 k = row * n_basis + threadIdx.x; k < (row + 1) * n_basis; k += 32) out[k] = (float)(mine * unit[k]);
}
