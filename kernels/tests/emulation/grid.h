// A CUDA thread grid on the host, as far as the kernels of kernels/cuda use one: this file is included before a .cu file, which
// then compiles as C++17. grid.cpp runs it.
//
// The threads of a block are fibers. Every access to memory is seen, because the .cu file is compiled with the compiler's thread
// sanitizer, whose callbacks grid.cpp defines itself: so an access outside an allocation, a misaligned one, shared memory read
// before it was written, and two accesses that no barrier orders (between threads, or between blocks of a launch) are errors, not
// luck. A barrier or a warp's collective that not all its threads reach, at the same line, is an error too.
//
// An asynchronous copy is made when its thread waits for it; from when it was begun until then nobody may read its place.
//
// Stricter than the device: blocks are whole warps; a thread must not end before a barrier or collective that names it; writing
// the same value twice without order is a race; shuffles and wmma order no memory (as CUDA says), only __syncwarp of a whole warp
// and __syncthreads do. Shared memory is watched in pieces of two bytes. __threadfence orders nothing here: blocks of one launch
// cannot pass data on, except by atomics.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
// Its place, .bss, is how grid.cpp knows it: kernels have no other variables that last.
#define __shared__ static

#define WEIR_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(weir_dynamic_shared())
#define WEIR_KERNEL(name)                                                                       \
    extern "C" void weir_call_##name(void** args) { weir_grid::call(name, args); }              \
    extern "C" void weir_signature_##name(char* out) { weir_grid::signature(name, out); }

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// What a fiber sees of its place. The runtime sets it at every switch.
struct WeirPlace {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern "C" WeirPlace weir_place;
#define threadIdx (weir_place.thread)
#define blockIdx (weir_place.block)
#define blockDim (weir_place.block_dim)
#define gridDim (weir_place.grid_dim)
constexpr int warpSize = 32;

extern "C" {
void* weir_dynamic_shared();
void weir_barrier(int line);
void weir_syncwarp(unsigned mask, int line);
// kind: 0 from lane `other`, 1 xor, 2 down, 3 up.
uint64_t weir_shuffle(int kind, unsigned mask, uint64_t value, int other, int width, int line);
unsigned weir_ballot(unsigned mask, int predicate, int line);
// acc += a . b for a 16x16x16 tile; each lane holds 8 elements of each, rows of a and acc, columns and rows of b as in element().
void weir_mma(float* acc, const float* a, const float* b, int line);
void weir_warp_meets(int line);
void weir_atomic_access(void* address, unsigned bytes);
// Sixteen bytes to shared memory, zeros if not `valid`: they arrive with the weir_copies_arrive of this thread that leaves fewer
// groups on the way than were begun since.
void weir_copy_async(void* to, const void* from, bool valid);
void weir_copies_end_group();
void weir_copies_arrive(int groups_left);
// Copies unseen: what an atomic reads and writes is no plain access.
void weir_copy(void* to, const void* from, unsigned bytes);
void weir_fail(const char* what);
}

#define WEIR_LINE int line = __builtin_LINE()

static inline void __syncthreads(WEIR_LINE) { weir_barrier(line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, WEIR_LINE) { weir_syncwarp(mask, line); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline unsigned __ballot_sync(unsigned mask, int predicate, WEIR_LINE) { return weir_ballot(mask, predicate, line); }
static inline int __any_sync(unsigned mask, int predicate, WEIR_LINE) { return weir_ballot(mask, predicate, line) != 0; }
static inline int __all_sync(unsigned mask, int predicate, WEIR_LINE) { return weir_ballot(mask, predicate, line) == mask; }

namespace weir_grid {

template <typename T>
T shuffle(int kind, unsigned mask, T value, int other, int width, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = weir_shuffle(kind, mask, bits, other, width, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

template <typename T>
struct Letter;
template <typename T>
struct Letter<T*> {
    static constexpr char value = 'p';
};
template <>
struct Letter<uint32_t> {
    static constexpr char value = 'u';
};
template <>
struct Letter<unsigned long> {
    static constexpr char value = 'U';
};
template <>
struct Letter<unsigned long long> {
    static constexpr char value = 'U';
};
template <>
struct Letter<float> {
    static constexpr char value = 'f';
};

template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I>
struct Count<0, I...> {
    using type = Indices<I...>;
};

template <typename... A, size_t... I>
void call_each(void (*kernel)(A...), void** args, Indices<I...>) {
    kernel(*reinterpret_cast<A*>(args[I])...);
}

// Calls a kernel with parameters taken from where `args` point, by its own signature.
template <typename... A>
void call(void (*kernel)(A...), void** args) {
    call_each(kernel, args, typename Count<sizeof...(A)>::type());
}

// One letter for each parameter: p pointer, u uint32_t, U uint64_t, f float.
template <typename... A>
void signature(void (*)(A...), char* out) {
    const char letters[] = {Letter<A>::value..., 0};
    memcpy(out, letters, sizeof(letters));
}

template <typename T, typename F>
T atomic(T* address, F next) {
    weir_atomic_access(address, sizeof(T));
    T old;
    weir_copy(&old, address, sizeof(T));
    T value = next(old);
    weir_copy(address, &value, sizeof(T));
    return old;
}

}  // namespace weir_grid

template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, WEIR_LINE) {
    return weir_grid::shuffle(0, mask, value, lane, width, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, WEIR_LINE) {
    return weir_grid::shuffle(1, mask, value, lanes, width, line);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, WEIR_LINE) {
    return weir_grid::shuffle(2, mask, value, int(by), width, line);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, WEIR_LINE) {
    return weir_grid::shuffle(3, mask, value, int(by), width, line);
}

#define WEIR_ATOMIC(name, type, next) \
    static inline type name(type* at, type x) { return weir_grid::atomic(at, [x](type old) { return static_cast<type>(next); }); }
#define WEIR_ATOMIC_ORDERED(type)                        \
    WEIR_ATOMIC(atomicAdd, type, old + x)                \
    WEIR_ATOMIC(atomicMax, type, old > x ? old : x)      \
    WEIR_ATOMIC(atomicMin, type, old < x ? old : x)      \
    WEIR_ATOMIC(atomicOr, type, old | x)                 \
    WEIR_ATOMIC(atomicAnd, type, old & x)                \
    WEIR_ATOMIC(atomicExch, type, ((void)old, x))        \
    static inline type atomicCAS(type* at, type is, type x) { \
        return weir_grid::atomic(at, [is, x](type old) { return old == is ? x : old; }); \
    }
WEIR_ATOMIC(atomicAdd, float, old + x)
WEIR_ATOMIC(atomicExch, float, ((void)old, x))
WEIR_ATOMIC_ORDERED(int)
WEIR_ATOMIC_ORDERED(unsigned)
WEIR_ATOMIC_ORDERED(unsigned long long)

template <typename T>
static inline T __ldg(const T* at) {
    return *at;
}

#include "types.h"
#include "wmma.h"
