// Sum and softmax along the middle axis of x (outer, length, inner): a thread for each (outer, inner), as lengths are
// small.
// Bytes: 4 (in + out) for the sum, 4 (3 in + out) at most for the softmax, whose repeated reads come from cache.
#include "kernel.cuh"

extern "C" __global__ void network_sum(const float* __restrict__ x, float* __restrict__ out, int64 n, int length, int inner) {
    const int64 i = global_index();
    if (i >= n) return;
    const float* from = x + i / inner * length * inner + i % inner;
    float sum = 0.0f;
    for (int k = 0; k < length; ++k) sum += from[(int64)k * inner];
    out[i] = sum;
}

extern "C" __global__ void network_softmax(const float* __restrict__ x, float* __restrict__ out, int64 n, int length, int inner) {
    const int64 i = global_index();
    if (i >= n) return;
    const int64 start = i / inner * length * inner + i % inner;
    float largest = x[start], sum = 0.0f;
    for (int k = 1; k < length; ++k) largest = fmaxf(largest, x[start + (int64)k * inner]);
    for (int k = 0; k < length; ++k) {
        const float weight = expf(x[start + (int64)k * inner] - largest);
        out[start + (int64)k * inner] = weight;
        sum += weight;
    }
    for (int k = 0; k < length; ++k) out[start + (int64)k * inner] /= sum;
}
