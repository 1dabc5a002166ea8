#include "kernel.cuh"

// Graphs take their latents in float32.
extern "C" __global__ void narrow(const double* __restrict__ values, float* __restrict__ out, int64 n) {
    const int64 i = global_index();
    if (i < n) out[i] = (float)values[i];
}
