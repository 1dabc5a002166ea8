// A source's image on its canvas, outskirts included.
#pragma once
#include "kernel.cuh"

// The two cells between whose centres a pixel lies, along one axis. Outskirts are bilinear between the centres of
// cells, constant beyond the outermost centres.
struct Axis {
    int near, far;
    float share;  // of the far cell
};

__device__ inline Axis between(int pixel, int side, int binning) {
    const int cell = pixel / binning, phase = pixel - cell * binning - binning / 2;
    const int far = min(max(cell + (phase > 0) - (phase < 0), 0), side - 1);
    return {cell, far, far == cell ? 0.0f : (float)abs(phase) / (float)binning};
}

struct Stamp {
    const float* core;
    const float* cells;  // null: there are no outskirts
    int x, y, window, margin, binning;

    __device__ float at(int canvas_x, int canvas_y) const {
        const int px = canvas_x - x, py = canvas_y - y;
        if (px >= 0 && px < window && py >= 0 && py < window) return core[py * window + px];
        const int side = (window + 2 * margin) / binning;
        const Axis h = between(px + margin, side, binning), v = between(py + margin, side, binning);
        const float* upper = cells + v.near * side;
        const float* lower = cells + v.far * side;
        const float first = (1.0f - h.share) * upper[h.near] + h.share * upper[h.far];
        const float second = (1.0f - h.share) * lower[h.near] + h.share * lower[h.far];
        return (1.0f - v.share) * first + v.share * second;
    }
};
