// The pixels that a source covers: its window, or its full window if it has outskirts, cut at the canvas' edges.
#pragma once
#include "stamp.cuh"

struct Cover {
    int scene, height, width, x0, y0, across, n_pixel;

    __device__ Cover(int64 i, bool whole, const int* scenes, const int* corner, const int* canvas_shape, int window,
                     int margin) {
        const int around = whole ? margin : 0, left = corner[2 * i] - around, top = corner[2 * i + 1] - around;
        const int size = window + 2 * around;
        scene = scenes[i], height = canvas_shape[2 * scene], width = canvas_shape[2 * scene + 1];
        x0 = max(left, 0), y0 = max(top, 0);
        across = max(min(left + size, width) - x0, 0);
        n_pixel = across * max(min(top + size, height) - y0, 0);
    }

    // Place of a pixel on the canvas.
    __device__ int x(int p) const { return x0 + p % across; }
    __device__ int y(int p) const { return y0 + p / across; }

    // Number of a pixel among the covered pixels, or -1.
    __device__ int number(int x, int y) const {
        const int p = (y - y0) * across + x - x0;
        return x >= x0 && x < x0 + across && y >= y0 && p < n_pixel ? p : -1;
    }
};

// A footprint is a bit for each covered pixel, 32 a word.
__device__ inline bool holds(const int* footprint, int p) { return (unsigned)footprint[p / 32] >> p % 32 & 1; }
