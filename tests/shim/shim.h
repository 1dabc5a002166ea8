// Runs CUDA kernels on the host: the threads of a block are fibers (fast), or real threads where a sanitizer is to see
// them as such (SHIM_THREADS). Blocks run one after another, in reverse where `shim_reverse` is set: a kernel whose
// blocks depend on each other's order then gives other numbers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>
#ifdef SHIM_THREADS
#include <barrier>
#include <mutex>
#include <thread>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#ifdef SHIM_THREADS
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define __align__(n) alignas(n)
#define __grid_constant__
#define SHARED_MEMORY(type, name) type* name = reinterpret_cast<type*>(shim::shared_memory)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

// Several threads may launch at a time: fibers belong to the thread that launches; real threads take turns.
#ifdef SHIM_THREADS
#define LOCAL
#else
#define LOCAL thread_local
#endif

namespace shim {

struct Thread {
    dim3 index;
    bool done = false;
    void* stack_pointer = nullptr;
};

inline thread_local Thread* self = nullptr;
inline LOCAL dim3 block_index, block_size, grid_size;
inline LOCAL unsigned char* shared_memory = nullptr;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "shim: %s\n", what);
    std::abort();
}

#ifdef SHIM_THREADS
inline std::barrier<>* block_barrier = nullptr;
inline void synchronize() { block_barrier->arrive_and_wait(); }
#else
inline LOCAL void* scheduler_stack = nullptr;
extern "C" void shim_switch(void** save, void* load);
inline void synchronize() { shim_switch(&self->stack_pointer, scheduler_stack); }
inline LOCAL const std::function<void()>* body = nullptr;
inline void enter() {
    (*body)();
    self->done = true;
    synchronize();
    fail("a finished thread went on");
}
#endif

inline dim3 unravel(size_t i, dim3 n) { return dim3(i % n.x, i / n.x % n.y, i / n.x / n.y); }

inline bool reverse = false;

inline void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel) {
#ifdef SHIM_THREADS
    static std::mutex one_launch;
    const std::lock_guard<std::mutex> turn(one_launch);
#endif
    const size_t n_block = (size_t)grid.x * grid.y * grid.z, n_thread = (size_t)block.x * block.y * block.z;
    if (n_thread == 0 || n_thread > 1024 || block.z > 64) fail("a block has 1 to 1024 threads");
    if (grid.y > 65535 || grid.z > 65535) fail("grid.y and grid.z are at most 65535");
    if (shared > 227 * 1024) fail("more shared memory than a block can have");
    grid_size = grid;
    block_size = block;
    // exactly as large as asked for, so that a sanitizer sees every access beyond
    std::unique_ptr<unsigned char, decltype(&std::free)> memory(
        static_cast<unsigned char*>(std::aligned_alloc(64, (shared + 63) / 64 * 64 + 64)), &std::free);
    shared_memory = memory.get();
    std::vector<Thread> threads(n_thread);
#ifdef SHIM_THREADS
    std::barrier<> barrier(n_thread);
    block_barrier = &barrier;
    auto work = [&](size_t t) {
        self = &threads[t];
        self->index = unravel(t, block);
        for (size_t i = 0; i < n_block; ++i) {
            barrier.arrive_and_wait();
            if (t == 0) {
                block_index = unravel(reverse ? n_block - 1 - i : i, grid);
                std::memset(shared_memory, 0xff, shared);
            }
            barrier.arrive_and_wait();
            kernel();
        }
    };
    std::vector<std::thread> running;
    for (size_t t = 0; t < n_thread; ++t) running.emplace_back(work, t);
    for (auto& thread : running) thread.join();
#else
    constexpr size_t stack_size = 64 * 1024;
    static thread_local std::vector<unsigned char> stacks;
    if (stacks.size() < n_thread * stack_size + 16) stacks.resize(n_thread * stack_size + 16);
    body = &kernel;
    for (size_t i = 0; i < n_block; ++i) {
        block_index = unravel(reverse ? n_block - 1 - i : i, grid);
        std::memset(shared_memory, 0xff, shared);
        for (size_t t = 0; t < n_thread; ++t) {
            threads[t] = {unravel(t, block), false, nullptr};
            auto top = (reinterpret_cast<uintptr_t>(stacks.data() + (t + 1) * stack_size)) & ~uintptr_t(15);
            auto* stack = reinterpret_cast<void**>(top);
            *--stack = nullptr;  // where `enter` would return to; also aligns the stack as a call would
            *--stack = reinterpret_cast<void*>(&enter);
            for (int k = 0; k < 6; ++k) *--stack = nullptr;
            threads[t].stack_pointer = stack;
        }
        for (;;) {
            size_t n_done = 0;
            for (auto& thread : threads) {
                if (!thread.done) {
                    self = &thread;
                    shim_switch(&scheduler_stack, thread.stack_pointer);
                }
                n_done += thread.done;
            }
            if (n_done == n_thread) break;
            if (n_done) fail("some threads of a block finished while others wait at a barrier");
        }
    }
#endif
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}

template <typename... A>
void run(void (*kernel)(A...), const unsigned* grid, const unsigned* block, size_t shared, void** arguments,
         int n_argument) {
    if (n_argument != (int)sizeof...(A)) fail("wrong number of arguments");
    const std::function<void()> body = [&] { call(kernel, arguments, std::index_sequence_for<A...>{}); };
    launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared, body);
}

// Sizes and kinds of a kernel's parameters: 'p' pointer, 'f' floating, 'i' integer, and the size.
template <typename A>
constexpr int describe() {
    using T = std::remove_cv_t<A>;
    return (std::is_pointer_v<T> ? 'p' : std::is_floating_point_v<T> ? 'f' : 'i') * 256 + (int)sizeof(T);
}
template <typename... A>
int signature(void (*)(A...), int* out, int room) {
    const int kinds[] = {describe<A>()..., 0};
    for (int i = 0; i < (int)sizeof...(A) && i < room; ++i) out[i] = kinds[i];
    return (int)sizeof...(A);
}

}  // namespace shim

#if !defined(SHIM_THREADS) && defined(__x86_64__)
asm(R"(
.text
.globl shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#elif !defined(SHIM_THREADS)
#error "fibers are written for x86-64; elsewhere compile with -DSHIM_THREADS"
#endif

#define threadIdx (shim::self->index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define __syncthreads() shim::synchronize()

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
template <typename T> inline T __ldg(const T* p) { return *p; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }  // counts only: sums of
                                                                                          // floats use no atomics
