// Fused elementwise operations: interprets a program (see cuda/network/program.py) for every element.
//
// Registers of the program lie in shared memory, [register][lane][thread]; each thread has LANES elements, which share
// the decoding of an instruction. Bytes: 4 for each element of each view that is loaded or stored.
#include "kernel.cuh"

constexpr int LANES = 4, THREADS = 128, AXES = 4, HEADER = 6, OPERAND = 8;

#define UNARY(code, expression)                          \
    case code:                                           \
        _Pragma("unroll") for (int l = 0; l < LANES; ++l) { \
            const float x = first[l * THREADS];          \
            to[l * THREADS] = expression;                \
        }                                                \
        break;
#define BINARY(code, expression)                                              \
    case code:                                                                \
        _Pragma("unroll") for (int l = 0; l < LANES; ++l) {                      \
            const float x = first[l * THREADS], y = second[l * THREADS];      \
            to[l * THREADS] = expression;                                     \
        }                                                                     \
        break;

struct Place {
    int64 at;
    bool zero;
};

// Place of an element in an operand; -1 in a table means that the element is zero.
__device__ __forceinline__ Place place(const int* __restrict__ program, const int* __restrict__ operand, const unsigned (&at)[AXES]) {
    int64 position = operand[1];
#pragma unroll
    for (int d = 0; d < AXES; ++d) position += (int64)at[d] * operand[2 + d];
    const int axis = operand[6];
    if (axis < 0) return {position, false};
    const unsigned along = axis == 0 ? at[0] : axis == 1 ? at[1] : axis == 2 ? at[2] : at[3];
    const int entry = program[operand[7] + along];
    return {position + entry, entry < 0};
}

extern "C" __global__ void __launch_bounds__(128) network_map(const int* __restrict__ program, unsigned n_element, float* arena, float* constants, float* input0, float* input1, float* input2, float* input3, float* output0, float* output1, float* output2, float* output3) {
    SHARED_MEMORY(float, slot);
    __shared__ float* base[10];
    const int t = threadIdx.x;
    if (t == 0) {
        base[0] = arena, base[1] = constants;
        base[2] = input0, base[3] = input1, base[4] = input2, base[5] = input3;
        base[6] = output0, base[7] = output1, base[8] = output2, base[9] = output3;
    }
    __syncthreads();
    const unsigned begin = blockIdx.x * (LANES * THREADS) + t;
    unsigned at[LANES][AXES];
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        unsigned rest = min(begin + l * THREADS, n_element - 1);  // beyond the end: the last once more, not stored
#pragma unroll
        for (int d = AXES - 1; d > 0; --d) {
            const unsigned length = program[2 + d];
            at[l][d] = rest % length;
            rest /= length;
        }
        at[l][0] = rest;
    }
    float* mine = slot + t;
    const int n_instruction = program[0];
    const int* operands = program + program[1];
    for (int i = 0; i < n_instruction; ++i) {
        const int* instruction = program + HEADER + 4 * i;
        const int code = instruction[0], a = instruction[1], b = instruction[2], c = instruction[3];
        if (code == 0) {
            const int* operand = operands + OPERAND * b;
            const float* from = base[operand[0]];
#pragma unroll
            for (int l = 0; l < LANES; ++l) {
                const Place where = place(program, operand, at[l]);
                mine[(a * LANES + l) * THREADS] = where.zero ? 0.0f : from[where.at];
            }
            continue;
        }
        if (code == 2) {
            const int* operand = operands + OPERAND * a;
            float* into = base[operand[0]];
#pragma unroll
            for (int l = 0; l < LANES; ++l)
                if (begin + l * THREADS < n_element)
                    into[place(program, operand, at[l]).at] = mine[(b * LANES + l) * THREADS];
            continue;
        }
        float* to = mine + a * LANES * THREADS;
        if (code == 1) {
#pragma unroll
            for (int l = 0; l < LANES; ++l) to[l * THREADS] = __int_as_float(b);
            continue;
        }
        const float *first = mine + b * LANES * THREADS, *second = mine + c * LANES * THREADS;
        switch (code) {
            BINARY(3, x + y)
            BINARY(4, x - y)
            BINARY(5, x * y)
            BINARY(6, x / y)
            BINARY(7, powf(x, y))
            BINARY(8, x > y || x != x ? x : y)
            BINARY(9, x < y || x != x ? x : y)
            UNARY(10, -x)
            UNARY(11, fabsf(x))
            UNARY(12, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x)
            UNARY(13, expf(x))
            UNARY(14, logf(x))
            UNARY(15, tanhf(x))
            UNARY(16, asinhf(x))
            UNARY(17, 1.0f / (1.0f + expf(-x)))
        }
    }
}
