// joint_conjugate: a block per blend of more than `largest` sources, an element of its members' latents per thread and
// turn. In `image` a thread reads only its own values; a barrier precedes all reads of values of other threads.
#include "kernel.cuh"

// (inverse[i] @ v[i])[l]; the inverse is symmetric and read by columns: neighbouring threads read neighbours.
__device__ inline double preconditioned(const double* inverse, const double* v, int64 i, int l, int n) {
    const double* mine = inverse + i * n * n + l;
    double sum = 0.0;
    for (int k = 0; k < n; ++k) sum += mine[(int64)k * n] * v[i * n + k];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256) joint_conjugate(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const int* __restrict__ pairs,
    const int* __restrict__ partner_start, const int* __restrict__ partner, const double* __restrict__ blocks,
    const double* __restrict__ inverse, const double* __restrict__ target, int largest, int n_latent, int n_iteration,
    double* rest, double* direction, double* image, double* step) {
    __shared__ double scratch[256];
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= largest) return;
    double along = 0.0;
    for (int e = threadIdx.x; e < n * n_latent; e += 256) {
        const int m = e / n_latent, l = e - m * n_latent;
        const int64 i = blend_source[start + m], at = i * n_latent + l;
        const double z = preconditioned(inverse, target, i, l, n_latent), mine = target[at];
        step[at] = 0.0, rest[at] = mine, direction[at] = z;
        along += mine * z;
    }
    double before = block_sum(along, scratch);
    for (int iteration = 0; iteration < n_iteration; ++iteration) {
        along = 0.0;
        for (int e = threadIdx.x; e < n * n_latent; e += 256) {
            const int m = e / n_latent, l = e - m * n_latent;
            const int64 at = (int64)blend_source[start + m] * n_latent + l;
            double applied = 0.0;
            for (int q = partner_start[start + m]; q < partner_start[start + m + 1]; ++q) {
                const int64 p = partner[q] / 2;
                const int second = partner[q] % 2;  // of the pair: its block is transposed
                const double* block = blocks + p * n_latent * n_latent + (second ? l : (int64)l * n_latent);
                const double* v = direction + (int64)pairs[2 * p + 1 - second] * n_latent;
                const int stride = second ? n_latent : 1;
                double sum = 0.0;
                for (int k = 0; k < n_latent; ++k) sum += block[(int64)k * stride] * v[k];
                applied += sum;
            }
            image[at] = applied;
            along += direction[at] * applied;
        }
        along = block_sum(along, scratch);
        const double alpha = along > 0.0 ? before / along : 0.0;
        for (int e = threadIdx.x; e < n * n_latent; e += 256) {
            const int m = e / n_latent;
            const int64 at = (int64)blend_source[start + m] * n_latent + e - m * n_latent;
            step[at] += alpha * direction[at];
            rest[at] -= alpha * image[at];
        }
        __syncthreads();
        double following = 0.0;
        for (int e = threadIdx.x; e < n * n_latent; e += 256) {
            const int m = e / n_latent, l = e - m * n_latent;
            const int64 i = blend_source[start + m], at = i * n_latent + l;
            const double z = preconditioned(inverse, rest, i, l, n_latent);
            image[at] = z;
            following += rest[at] * z;
        }
        following = block_sum(following, scratch);
        const double beta = before > 0.0 ? following / before : 0.0;
        for (int e = threadIdx.x; e < n * n_latent; e += 256) {
            const int m = e / n_latent;
            const int64 at = (int64)blend_source[start + m] * n_latent + e - m * n_latent;
            direction[at] = image[at] + beta * direction[at];
        }
        before = following;
        __syncthreads();
    }
}
