// The members of a blend.
#pragma once
#include "kernel.cuh"

// Place of a source among the ascending members of its blend.
__device__ inline int rank_of(int source, const int* members, int n) {
    int low = 0, high = n - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (members[middle] < source) low = middle + 1;
        else high = middle;
    }
    return low;
}
