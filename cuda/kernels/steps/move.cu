// move: a thread per latent of a source; the length of a shape step is summed anew by each of its threads, from cache.
#include "kernel.cuh"

extern "C" __global__ void move(const int* __restrict__ scene, const double* latent, const double* __restrict__ step,
                                const double* __restrict__ floor, const double* __restrict__ offset0, int n_source,
                                int n_band, int n_latent, double min_flux_factor, double max_flux_factor,
                                double max_offset_step, double max_drift, double max_shape_step, double* out) {
    const int64 place = global_index();
    const int i = (int)(place / n_latent), l = (int)(place - (int64)i * n_latent);
    if (i >= n_source || scene[i] < 0) return;
    const double before = latent[place], change = step[place];
    if (l < n_band) {
        const double factor = fmin(fmax(1.0 + change, min_flux_factor), max_flux_factor);
        out[place] = fmax(before + log(factor), floor[(int64)i * n_band + l]);
    } else if (l < n_band + 2) {
        const double centre = offset0[2 * (int64)i + l - n_band];
        const double after = before + fmin(fmax(change, -max_offset_step), max_offset_step);
        out[place] = fmin(fmax(after, centre - max_drift), centre + max_drift);
    } else {
        double square = 0.0;
        for (int s = n_band + 2; s < n_latent; ++s) {
            const double v = step[(int64)i * n_latent + s];
            square += v * v;
        }
        out[place] = before + change * fmin(1.0, max_shape_step / fmax(sqrt(square), 1e-12));
    }
}
