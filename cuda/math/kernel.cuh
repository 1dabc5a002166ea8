// Included by every kernel: names for things that the GPU's compiler and the tests' shim spell differently.
#pragma once

#ifdef DEBLENDRT_SHIM
#include "shim.h"
#else
// Dynamic shared memory of a block, as an array of `type`.
#define SHARED_MEMORY(type, name)                                 \
    extern __shared__ __align__(16) unsigned char shared_bytes_[]; \
    type* name = reinterpret_cast<type*>(shared_bytes_)
#endif

typedef long long int64;

// Index of this thread in a one-dimensional grid.
__device__ inline int64 global_index() { return (int64)blockIdx.x * blockDim.x + threadIdx.x; }

// Sum over a block of a power of two of threads, the same for all; `scratch` holds blockDim.x values. The order of the
// sum is fixed: bits do not change from run to run.
template <typename T>
__device__ inline T block_sum(T value, T* scratch) {
    const int t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] += scratch[t + half];
        __syncthreads();
    }
    T total = scratch[0];
    __syncthreads();
    return total;
}
