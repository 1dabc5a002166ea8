// conjugate_start, conjugate_step: a block per blend, an element of its members' latents per thread and turn. Matrices
// are symmetric and read by columns: neighbouring threads then read neighbours. A thread finds in `pulled` what itself
// left there; vectors that others wrote lie behind a barrier.
#include "kernel.cuh"

// (matrix[i] @ v[i])[l]
__device__ inline double product(const double* matrix, const double* v, int64 i, int l, int n) {
    const double* mine = matrix + i * n * n + l;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum += mine[(int64)k * n] * v[i * n + k];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256) conjugate_start(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const double* __restrict__ inverse,
    const double* __restrict__ target, int n_latent, double* __restrict__ solution, double* __restrict__ rest,
    double* __restrict__ direction, double* __restrict__ rz) {
    __shared__ double scratch[256];
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= 0) return;
    double along = 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent, l = e - m * n_latent;
        const int64 i = blend_source[start + m], at = i * n_latent + l;
        const double z = product(inverse, target, i, l, n_latent), mine = target[at];
        solution[at] = n == 1 ? z : 0.0;  // alone: solved
        rest[at] = n == 1 ? 0.0 : mine;
        direction[at] = n == 1 ? 0.0 : z;
        along += n == 1 ? 0.0 : mine * z;
    }
    along = block_sum(along, scratch);
    if (threadIdx.x == 0) rz[blend] = along;
}

extern "C" __global__ void __launch_bounds__(256) conjugate_step(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const double* __restrict__ inverse,
    const double* __restrict__ curvature, const double* __restrict__ added, int n_latent, double* pulled,
    double* solution, double* rest, double* direction, double* rz) {
    __shared__ double scratch[256];
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= 1) return;
    const double before = rz[blend];
    double along = 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent, l = e - m * n_latent;
        const int64 i = blend_source[start + m], at = i * n_latent + l;
        const double mine = direction[at];
        const double image = pulled[at] + product(curvature, direction, i, l, n_latent) + added[at] * mine;
        pulled[at] = image;
        along += mine * image;
    }
    along = block_sum(along, scratch);
    const double alpha = along > 0.0 ? before / along : 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent;
        const int64 at = (int64)blend_source[start + m] * n_latent + e - m * n_latent;
        solution[at] += alpha * direction[at];
        rest[at] -= alpha * pulled[at];
    }
    __syncthreads();
    double following = 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent, l = e - m * n_latent;
        const int64 i = blend_source[start + m], at = i * n_latent + l;
        const double z = product(inverse, rest, i, l, n_latent);
        pulled[at] = z;
        following += rest[at] * z;
    }
    following = block_sum(following, scratch);
    const double beta = before > 0.0 ? following / before : 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent;
        const int64 at = (int64)blend_source[start + m] * n_latent + e - m * n_latent;
        direction[at] = pulled[at] + beta * direction[at];
    }
    if (threadIdx.x == 0) rz[blend] = following;
}
