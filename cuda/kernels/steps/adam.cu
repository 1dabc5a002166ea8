// adam: a thread per latent of a source.
#include "kernel.cuh"

extern "C" __global__ void adam(const int* __restrict__ scene, const double* __restrict__ downhill,
                                const double* __restrict__ floor, const double* __restrict__ offset0, int n_source,
                                int n_band, int n_latent, double rate, double first_share, double second_share,
                                double first_correction, double second_correction, double epsilon, double max_drift,
                                double* __restrict__ first, double* __restrict__ second, double* __restrict__ latent) {
    const int64 place = global_index();
    const int i = (int)(place / n_latent), l = (int)(place - (int64)i * n_latent);
    if (i >= n_source || scene[i] < 0) return;
    const double uphill = -downhill[place];
    const double mean = first[place] + first_share * (uphill - first[place]);
    const double square = second[place] + second_share * (uphill * uphill - second[place]);
    first[place] = mean;
    second[place] = square;
    double after = latent[place] - rate * mean / first_correction / (sqrt(square / second_correction) + epsilon);
    if (l < n_band) {
        after = fmax(after, floor[(int64)i * n_band + l]);
    } else if (l < n_band + 2) {
        const double centre = offset0[2 * (int64)i + l - n_band];
        after = fmin(fmax(after, centre - max_drift), centre + max_drift);
    }
    latent[place] = after;
}
