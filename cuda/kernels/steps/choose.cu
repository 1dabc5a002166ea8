// choose: a block per source copies its rows of up to eight arrays; a row is `words` words of 16 bytes, or
// -words words of 4 bytes.
#include "kernel.cuh"

template <typename Word>
__device__ inline void copy_row(const void* __restrict__ source, void* __restrict__ target, int i, int words) {
    const Word* from = (const Word*)source + (int64)i * words;
    Word* to = (Word*)target + (int64)i * words;
    for (int w = threadIdx.x; w < words; w += blockDim.x) to[w] = from[w];
}

__device__ inline void copy_any(const void* source, void* target, int i, int words) {
    if (words > 0) copy_row<int4>(source, target, i, words);
    if (words < 0) copy_row<int>(source, target, i, -words);
}

extern "C" __global__ void __launch_bounds__(128) choose(
    const int* __restrict__ blend, const int* __restrict__ better, const void* source0, void* target0, int words0,
    const void* source1, void* target1, int words1, const void* source2, void* target2, int words2,
    const void* source3, void* target3, int words3, const void* source4, void* target4, int words4,
    const void* source5, void* target5, int words5, const void* source6, void* target6, int words6,
    const void* source7, void* target7, int words7) {
    const int i = blockIdx.x, mine = blend[i];
    if (mine < 0 || !better[mine]) return;
    copy_any(source0, target0, i, words0);
    copy_any(source1, target1, i, words1);
    copy_any(source2, target2, i, words2);
    copy_any(source3, target3, i, words3);
    copy_any(source4, target4, i, words4);
    copy_any(source5, target5, i, words5);
    copy_any(source6, target6, i, words6);
    copy_any(source7, target7, i, words7);
}
