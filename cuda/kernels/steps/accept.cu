// accept: a warp per blend. Threads share the sums over its members' latents, in an order fixed by its size alone.
#include "kernel.cuh"

extern "C" __global__ void __launch_bounds__(32) accept_step(
    const int* __restrict__ blend_start, const int* __restrict__ blend_source, const double* __restrict__ loss,
    const double* __restrict__ log_prior, const double* __restrict__ trial_log_prior,
    const double* __restrict__ downhill, const double* __restrict__ step, int n_latent, double rejected_damping,
    double min_damping, double max_damping, double rejected_factor, double poor_decrease, double poor_factor,
    double good_decrease, double good_factor, double* __restrict__ damping, int* __restrict__ better,
    double* __restrict__ left) {
    __shared__ double scratch[32];
    const int blend = blockIdx.x, start = blend_start[blend], n = blend_start[blend + 1] - start;
    if (n <= 0) {
        if (threadIdx.x == 0) better[blend] = 0, left[blend] = 0.0;
        return;
    }
    double now = 0.0, tried = 0.0, along = 0.0;
    for (int m = threadIdx.x; m < n; m += 32) {
        const int i = blend_source[start + m];
        now += log_prior[i];
        tried += trial_log_prior[i];
    }
    for (int e = threadIdx.x; e < n * n_latent; e += 32) {
        const int m = e / n_latent;
        const int64 at = (int64)blend_source[start + m] * n_latent + e - m * n_latent;
        along += downhill[at] * step[at];
    }
    now = block_sum(now, scratch);
    tried = block_sum(tried, scratch);
    const double expected = 0.5 * block_sum(along, scratch);
    if (threadIdx.x) return;
    const double decrease = (loss[2 * (int64)blend] - now) - (loss[2 * (int64)blend + 1] - tried);
    const double before = damping[blend];
    double after = before * good_factor;
    if (!(decrease > 0.0)) after = fmax(before * rejected_factor, rejected_damping);
    else if (decrease < poor_decrease * expected) after = before * poor_factor;
    else if (decrease < good_decrease * expected) after = before;
    damping[blend] = fmin(fmax(after, min_damping), max_damping);
    better[blend] = decrease > 0.0;
    left[blend] = expected;
}
