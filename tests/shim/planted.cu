// Kernels for the tests of devices and sanitizers; three of them are wrong on purpose.
#include "kernel.cuh"

// out[i] = scale * x[i] + shift, argument types of every kind
extern "C" __global__ void affine(const float* __restrict__ x, float scale, double shift, int n, int64 stride,
                                  float* __restrict__ out) {
    const int64 i = global_index();
    if (i < n) out[i * stride] = (float)(scale * x[i] + shift);
}

// out[block] = sum of the block's values of x, by dynamic shared memory of any size
extern "C" __global__ void sums(const float* __restrict__ x, int n, int last, float* __restrict__ out) {
    SHARED_MEMORY(float, scratch);
    const int64 i = global_index();
    const float total = block_sum(i < n ? x[i] : 0.0f, scratch);
    if (threadIdx.x == 0) {
        scratch[last] = total;  // the last element of what was asked for
        out[blockIdx.x] = scratch[last];
    }
}

// 1 where x is no array
extern "C" __global__ void is_null(const float* __restrict__ x, int* __restrict__ out) { out[0] = x == nullptr; }

extern "C" __global__ void writes_beyond(int n, float* __restrict__ out) {
    const int64 i = global_index();
    if (i <= n) out[i] = 1.0f;
}

extern "C" __global__ void reads_beyond(const float* __restrict__ x, int n, float* __restrict__ out) {
    const int64 i = global_index();
    if (i < n) out[i] = x[i + 1] - x[i];
}

// reverses each block's values, without the barrier between writing and reading
extern "C" __global__ void lacks_a_barrier(const float* __restrict__ x, float* __restrict__ out) {
    __shared__ float values[32];
    values[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = values[31 - threadIdx.x];
}

// the same, right
extern "C" __global__ void has_the_barrier(const float* __restrict__ x, float* __restrict__ out) {
    __shared__ float values[32];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = values[31 - threadIdx.x];
}
