// The likelihood of a pixel around a model: tempered weight and bound of the robust loss, see engine/solve/objective.py.
#pragma once
#include "kernel.cuh"

struct PixelLikelihood {
    float weight, bound;  // inverse variance; square of the clip, in units of the noise

    __device__ PixelLikelihood(float given, float model, float temper, float error, float clip) {
        const float significance = given * model * model, noise = 1.0f + temper * temper * significance;
        weight = given / noise;
        bound = clip * clip * ((1.0f + error * error * significance) / noise);
    }
};
