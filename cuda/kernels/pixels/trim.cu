// The windows of sources' extents, and zeros outside them: smaller windows use the first functions of the basis only.
#include "kernel.cuh"

// Look up the window of an extent, a thread per source: 1 outskirts, 0 the window, -k the k-th smaller window.
extern "C" __global__ void reach(const int* __restrict__ extent, const int* __restrict__ insets,
                                 const int* __restrict__ used, int n_source, int* __restrict__ extended,
                                 int* __restrict__ inset, int* __restrict__ n_used) {
    const int64 i = global_index();
    if (i >= n_source) return;
    const int window = max(-extent[i], 0);
    extended[i] = extent[i] > 0;
    inset[i] = insets[window];
    n_used[i] = used[window];
}

// Copy coefficients, with zeros for functions that are not used, a block per source; `out` may be `rows`.
extern "C" __global__ void __launch_bounds__(128) trim_basis(const int* __restrict__ n_used, const float* rows,
                                                             int n_row, int n_basis, float* out) {
    const int64 start = (int64)blockIdx.x * n_row * n_basis;
    const int used = n_used[blockIdx.x];
    for (int j = threadIdx.x; j < n_row * n_basis; j += 128)
        out[start + j] = j % n_basis < used ? rows[start + j] : 0.0f;
}

// Set the pixels around smaller windows to zero, a block per source and image of it.
extern "C" __global__ void __launch_bounds__(256) trim_stamps(const int* __restrict__ inset, int n_row, int window,
                                                              float* __restrict__ stamps) {
    const int cut = inset[blockIdx.x], n_pixel = window * window;
    if (cut == 0) return;
    float* stamp = stamps + ((int64)blockIdx.x * n_row + blockIdx.y) * n_pixel;
    for (int p = threadIdx.x; p < n_pixel; p += 256) {
        const int y = p / window, x = p - y * window;
        if (y < cut || y >= window - cut || x < cut || x >= window - cut) stamp[p] = 0.0f;
    }
}
