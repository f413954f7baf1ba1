// CUDA C++ for g++: included in front of a kernel source that is compiled for the host.
// __global__, __shared__ and __launch_bounds__ are not macros: nvrtc.cpp rewrites them in the preprocessed text,
// because it has to see the kernels' names after macro expansion, and `extern __shared__` takes a rewrite.
#pragma once
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
#define __CUDACC__ 1
#define HOST_DEVICE_FUNCTIONS 1  // the functions that kernels write in PTX are here, below

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "interface.h"

#define __device__
#define __host__
#define __constant__ __attribute__((visibility("default")))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __grid_constant__

#define STAND_IN_INLINE static inline __attribute__((always_inline))
// A call whose return address is the place in the kernel, and that the check mode does not look into.
#define STAND_IN_CALL static __attribute__((noinline, unused, no_sanitize("thread", "undefined")))
#define STAND_IN_HERE __builtin_extract_return_addr(__builtin_return_address(0))

// ---- Vector types -------------------------------------------------------------------------------------------------

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define STAND_IN_PAIR(T, name)                         \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; }; \
    STAND_IN_INLINE name##2 make_##name##2(T x, T y) { return {x, y}; }
#define STAND_IN_TRIPLE(T, name) \
    struct name##3 { T x, y, z; };
#define STAND_IN_MAKE_TRIPLE(T, name) \
    STAND_IN_INLINE name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }
#define STAND_IN_QUADRUPLE(T, name)                                                    \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
    STAND_IN_INLINE name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define STAND_IN_VECTORS(T, name) \
    STAND_IN_PAIR(T, name) STAND_IN_TRIPLE(T, name) STAND_IN_MAKE_TRIPLE(T, name) STAND_IN_QUADRUPLE(T, name)

STAND_IN_VECTORS(float, float)
STAND_IN_VECTORS(double, double)
STAND_IN_VECTORS(int, int)
STAND_IN_VECTORS(char, char)
STAND_IN_VECTORS(unsigned char, uchar)
STAND_IN_VECTORS(short, short)
STAND_IN_VECTORS(unsigned short, ushort)
STAND_IN_VECTORS(long long, longlong)
STAND_IN_VECTORS(unsigned long long, ulonglong)
STAND_IN_PAIR(unsigned, uint)
STAND_IN_MAKE_TRIPLE(unsigned, uint)  // uint3 is in interface.h
STAND_IN_QUADRUPLE(unsigned, uint)

// ---- Where a thread is --------------------------------------------------------------------------------------------

namespace stand_in {

static const RuntimeCalls* runtime;

STAND_IN_INLINE ThreadHeader* header() {
    uintptr_t stack_pointer;
    asm("mov %%rsp, %0" : "=r"(stack_pointer));
    return (ThreadHeader*)((stack_pointer | (STACK_BYTES - 1)) + 1 - sizeof(ThreadHeader) -
                           header_offset(stack_pointer));
}

}  // namespace stand_in

#define threadIdx (stand_in::header()->index)
#define blockIdx (stand_in::header()->block->index)
#define blockDim (stand_in::header()->block->size)
#define gridDim (stand_in::header()->block->grid)
#define warpSize 32

// ---- Barriers, shuffles, votes ------------------------------------------------------------------------------------

// A barrier is known by its line: g++ may give one several addresses.
STAND_IN_CALL void __syncthreads(int line = __builtin_LINE()) {
    stand_in::runtime->barrier(stand_in::PLAIN, 0, STAND_IN_HERE, line);
}
STAND_IN_CALL int __syncthreads_count(int p, int line = __builtin_LINE()) {
    return stand_in::runtime->barrier(stand_in::COUNT, p, STAND_IN_HERE, line);
}
STAND_IN_CALL int __syncthreads_and(int p, int line = __builtin_LINE()) {
    return stand_in::runtime->barrier(stand_in::AND, p, STAND_IN_HERE, line);
}
STAND_IN_CALL int __syncthreads_or(int p, int line = __builtin_LINE()) {
    return stand_in::runtime->barrier(stand_in::OR, p, STAND_IN_HERE, line);
}
STAND_IN_CALL void __syncwarp(unsigned mask = 0xffffffffu) {
    stand_in::runtime->exchange(mask, 0, nullptr, STAND_IN_HERE);
}
STAND_IN_CALL unsigned __activemask() { return stand_in::runtime->active_mask(); }
STAND_IN_INLINE void __threadfence() {}
STAND_IN_INLINE void __threadfence_block() {}
STAND_IN_INLINE void __threadfence_system() {}

namespace stand_in {

enum Shuffle { DIRECT, UP, DOWN, XOR };

template <class T>
STAND_IN_CALL T shuffle(unsigned mask, T value, Shuffle kind, int argument, int width) {
    static_assert(sizeof(T) <= 8, "a shuffle of more than 8 bytes");
    void* here = STAND_IN_HERE;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const Exchange* all = runtime->exchange(mask, bits, nullptr, here);
    int lane = (int)header()->lane, first = lane & ~(width - 1), from = lane;
    switch (kind) {
        case DIRECT: from = first + (argument & (width - 1)); break;
        case UP: from = lane - argument < first ? lane : lane - argument; break;
        case DOWN: from = lane + argument >= first + width ? lane : lane + argument; break;
        case XOR: from = ((lane ^ argument) & ~(width - 1)) > first ? lane : lane ^ argument; break;
    }
    if (!(all->members >> from & 1)) runtime->report("shuffle reads a lane that does not take part", here);
    T result;
    memcpy(&result, &all->value[from], sizeof result);
    return result;
}

}  // namespace stand_in

template <class T>
STAND_IN_INLINE T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return stand_in::shuffle(mask, value, stand_in::DIRECT, lane, width);
}
template <class T>
STAND_IN_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return stand_in::shuffle(mask, value, stand_in::UP, (int)by, width);
}
template <class T>
STAND_IN_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return stand_in::shuffle(mask, value, stand_in::DOWN, (int)by, width);
}
template <class T>
STAND_IN_INLINE T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
    return stand_in::shuffle(mask, value, stand_in::XOR, by, width);
}
STAND_IN_CALL unsigned __ballot_sync(unsigned mask, int predicate) {
    const stand_in::Exchange* all = stand_in::runtime->exchange(mask, predicate != 0, nullptr, STAND_IN_HERE);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (all->members >> lane & 1) votes |= (unsigned)all->value[lane] << lane;
    return votes;
}
STAND_IN_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
STAND_IN_INLINE int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---- Tensor cores -------------------------------------------------------------------------------------------------

namespace stand_in {

STAND_IN_INLINE unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
STAND_IN_INLINE float float_of(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Rounds to the nearest, ties to even; NaN stays NaN.
STAND_IN_INLINE unsigned to_bf16(float x) {
    unsigned bits = bits_of(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// What one lane of a warp brings to a product d += a·b.
struct Fragments {
    float* d;
    const unsigned *a, *b;
};

// The product of all fragments, by the lane that comes last. With group = lane / 4 and t = lane % 4, element i of the
// accumulators is (group + 8·(i / 2), 2t + i % 2); `Operands` puts the words of a and b where they belong.
template <class Operands>
STAND_IN_CALL void multiply_fragments(const Exchange& all) {
    constexpr int K = Operands::K;
    if (all.members != 0xffffffffu) return;  // reported by `multiply`
    float a[16][K], b[K][8], d[16][8];
    auto element = [&](int lane, int i) -> float& { return d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]; };
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& f = *(const Fragments*)all.value[lane];
        for (int i = 0; i < 4; i++) Operands::put_a(a, f.a[i], lane / 4 + i % 2 * 8, i / 2, lane % 4);
        for (int i = 0; i < 2; i++) Operands::put_b(b, f.b[i], i, lane % 4, lane / 4);
        for (int i = 0; i < 4; i++) element(lane, i) = f.d[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++)
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) ((const Fragments*)all.value[lane])->d[i] = element(lane, i);
}

struct Tf32Operands {
    static constexpr int K = 8;
    STAND_IN_INLINE float value(unsigned word) {
        return float_of(word & 0xffffe000);
    }  // the low bits are not looked at
    STAND_IN_INLINE void put_a(float a[16][K], unsigned word, int row, int half, int t) {
        a[row][half * 4 + t] = value(word);
    }
    STAND_IN_INLINE void put_b(float b[K][8], unsigned word, int half, int t, int column) {
        b[half * 4 + t][column] = value(word);
    }
};

struct Bf16Operands {
    static constexpr int K = 16;
    STAND_IN_INLINE void put_a(float a[16][K], unsigned word, int row, int half, int t) {
        a[row][half * 8 + 2 * t] = float_of(word << 16);
        a[row][half * 8 + 2 * t + 1] = float_of(word & 0xffff0000);
    }
    STAND_IN_INLINE void put_b(float b[K][8], unsigned word, int half, int t, int column) {
        b[half * 8 + 2 * t][column] = float_of(word << 16);
        b[half * 8 + 2 * t + 1][column] = float_of(word & 0xffff0000);
    }
};

template <class Operands>
STAND_IN_INLINE void multiply(float d[4], const unsigned a[4], const unsigned b[2], void* here) {
    Fragments mine{d, a, b};
    const Exchange* all = runtime->exchange(0xffffffffu, (uint64_t)&mine, multiply_fragments<Operands>, here);
    if (all->members != 0xffffffffu) runtime->report("mma without all lanes of the warp", here);
}

}  // namespace stand_in

// cvt.rna.tf32.f32: to the nearest, ties away from zero.
STAND_IN_INLINE unsigned round_tf32(float x) {
    if (x != x) return 0x7fffffff;
    unsigned bits = stand_in::bits_of(x);
    return isinf(x) ? bits : (bits + 0x1000) & 0xffffe000;
}
// cvt.rn.bf16x2.f32.
STAND_IN_INLINE unsigned pack_bf16(float low, float high) {
    return stand_in::to_bf16(low) | stand_in::to_bf16(high) << 16;
}
// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
STAND_IN_CALL void mma_tf32(float d[4], const unsigned a[4], const unsigned b[2]) {
    stand_in::multiply<stand_in::Tf32Operands>(d, a, b, STAND_IN_HERE);
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
STAND_IN_CALL void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
    stand_in::multiply<stand_in::Bf16Operands>(d, a, b, STAND_IN_HERE);
}

// ---- Asynchronous copies (cp.async): done at the wait, poisoned until then ----------------------------------------

STAND_IN_CALL void copy_async_16(void* shared, const void* global) {
    stand_in::runtime->copy_async(shared, global, 16, STAND_IN_HERE);
}
STAND_IN_CALL void copy_async_4(void* shared, const void* global) {
    stand_in::runtime->copy_async(shared, global, 4, STAND_IN_HERE);
}
STAND_IN_CALL void copy_async_commit() { stand_in::runtime->copy_commit(); }
template <int N>
STAND_IN_CALL void copy_async_wait() {
    stand_in::runtime->copy_wait(N, STAND_IN_HERE);
}

// ---- Loads and stores with cache hints, atomics -------------------------------------------------------------------

template <class T>
STAND_IN_INLINE T __ldg(const T* p) {
    return *p;
}
template <class T>
STAND_IN_INLINE T __ldcs(const T* p) {
    return *p;
}
template <class T>
STAND_IN_INLINE T __ldca(const T* p) {
    return *p;
}
template <class T>
STAND_IN_INLINE T __ldcg(const T* p) {
    return *p;
}
template <class T>
STAND_IN_INLINE void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
STAND_IN_INLINE void __stcg(T* p, T value) {
    *p = value;
}

namespace stand_in {

// Only one host thread runs kernels, so a plain read and write is atomic.
template <class T, class Change>
STAND_IN_CALL T update(T* p, Change change) {
#ifdef STAND_IN_CHECK
    runtime->access(p, sizeof(T), WRITE | ATOMIC, STAND_IN_HERE);
#endif
    T before = *p;
    *p = change(before);
    return before;
}

}  // namespace stand_in

#define STAND_IN_ATOMIC(name, T, result)                              \
    STAND_IN_INLINE T name(T* p, T b) {                               \
        return stand_in::update(p, [=](T a) -> T { return result; }); \
    }
#define STAND_IN_ATOMICS(T)                                                     \
    STAND_IN_ATOMIC(atomicAdd, T, a + b)                                        \
    STAND_IN_ATOMIC(atomicSub, T, a - b)                                        \
    STAND_IN_ATOMIC(atomicMax, T, a > b ? a : b)                                \
    STAND_IN_ATOMIC(atomicMin, T, a < b ? a : b)                                \
    STAND_IN_ATOMIC(atomicOr, T, a | b)                                         \
    STAND_IN_ATOMIC(atomicAnd, T, a& b)                                         \
    STAND_IN_ATOMIC(atomicXor, T, a ^ b)                                        \
    STAND_IN_ATOMIC(atomicExch, T, ((void)a, b))                                \
    STAND_IN_INLINE T atomicCAS(T* p, T old, T b) {                             \
        return stand_in::update(p, [=](T a) -> T { return a == old ? b : a; }); \
    }
STAND_IN_ATOMICS(int)
STAND_IN_ATOMICS(unsigned)
STAND_IN_ATOMICS(unsigned long long)
STAND_IN_ATOMIC(atomicAdd, float, a + b)
STAND_IN_ATOMIC(atomicAdd, double, a + b)
STAND_IN_ATOMIC(atomicExch, float, ((void)a, b))

// ---- Arithmetic that CUDA has and the C library has not -----------------------------------------------------------

#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
STAND_IN_INLINE float __fdividef(float a, float b) { return a / b; }
STAND_IN_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
STAND_IN_INLINE float __fadd_rn(float a, float b) { return a + b; }
STAND_IN_INLINE float __fsub_rn(float a, float b) { return a - b; }
STAND_IN_INLINE float __fmul_rn(float a, float b) { return a * b; }
STAND_IN_INLINE float __fdiv_rn(float a, float b) { return a / b; }
STAND_IN_INLINE float __frcp_rn(float a) { return 1.0f / a; }
STAND_IN_INLINE float __fsqrt_rn(float a) { return sqrtf(a); }
STAND_IN_INLINE float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
STAND_IN_INLINE double __dadd_rn(double a, double b) { return a + b; }
STAND_IN_INLINE double __dmul_rn(double a, double b) { return a * b; }
STAND_IN_INLINE float rsqrtf(float a) { return 1.0f / sqrtf(a); }
STAND_IN_INLINE double rsqrt(double a) { return 1.0 / sqrt(a); }
STAND_IN_INLINE float rsqrt(float a) { return 1.0f / sqrtf(a); }
STAND_IN_INLINE float __saturatef(float a) { return a < 0 ? 0 : a > 1 ? 1 : a; }
STAND_IN_INLINE int __float2int_rn(float a) { return (int)rintf(a); }
STAND_IN_INLINE int __float2int_rd(float a) { return (int)floorf(a); }
STAND_IN_INLINE int __float_as_int(float a) { return (int)stand_in::bits_of(a); }
STAND_IN_INLINE unsigned __float_as_uint(float a) { return stand_in::bits_of(a); }
STAND_IN_INLINE float __int_as_float(int a) { return stand_in::float_of((unsigned)a); }
STAND_IN_INLINE float __uint_as_float(unsigned a) { return stand_in::float_of(a); }
STAND_IN_INLINE long long __double_as_longlong(double a) {
    long long bits;
    memcpy(&bits, &a, 8);
    return bits;
}
STAND_IN_INLINE double __longlong_as_double(long long bits) {
    double a;
    memcpy(&a, &bits, 8);
    return a;
}
STAND_IN_INLINE int __popc(unsigned a) { return __builtin_popcount(a); }
STAND_IN_INLINE int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
STAND_IN_INLINE int __ffs(int a) { return __builtin_ffs(a); }
STAND_IN_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
STAND_IN_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

#define STAND_IN_MIN_MAX(T, smaller, larger)            \
    STAND_IN_INLINE T min(T a, T b) { return smaller; } \
    STAND_IN_INLINE T max(T a, T b) { return larger; }
STAND_IN_MIN_MAX(int, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(unsigned, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(long, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(unsigned long, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(long long, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(unsigned long long, a<b ? a : b, a> b ? a : b)
STAND_IN_MIN_MAX(float, fminf(a, b), fmaxf(a, b))
STAND_IN_MIN_MAX(double, fmin(a, b), fmax(a, b))

// ---- Calling a kernel with the driver's list of parameters --------------------------------------------------------

namespace stand_in {

template <class T>
constexpr unsigned char is_pointer = 0;
template <class T>
constexpr unsigned char is_pointer<T*> = 1;

template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <size_t... I>
struct MakeIndices<0, I...> {
    typedef Indices<I...> type;
};

template <class F>
struct Signature;
template <class... A>
struct Signature<void (*)(A...)> {
    static constexpr int count = sizeof...(A);
    static inline const unsigned bytes[count + 1] = {(unsigned)sizeof(A)..., 0};
    static inline const unsigned alignment[count + 1] = {(unsigned)alignof(A)..., 1};
    static inline const unsigned char is_pointer[count + 1] = {stand_in::is_pointer<A>..., 0};

    template <void (*KERNEL)(A...), size_t... I>
    static __attribute__((no_sanitize("thread"))) void unpack(void** parameters, Indices<I...>) {
        KERNEL(*(A*)parameters[I]...);
        (void)parameters;
    }
    template <void (*KERNEL)(A...)>
    static __attribute__((no_sanitize("thread"))) void call(void** parameters) {
        unpack<KERNEL>(parameters, typename MakeIndices<count>::type());
    }
};

}  // namespace stand_in

// ---- Check mode ---------------------------------------------------------------------------------------------------

#ifdef STAND_IN_CHECK
// g++ -fsanitize=thread puts these calls before every access. Its own library is not linked: these are ours.
#define STAND_IN_HOOK extern "C" __attribute__((no_sanitize("thread"), visibility("hidden"))) void
#define STAND_IN_ACCESS(name, bytes, kind) \
    STAND_IN_HOOK name(void* p) { stand_in::runtime->access(p, bytes, kind, STAND_IN_HERE); }
#define STAND_IN_ACCESSES(bytes)                                         \
    STAND_IN_ACCESS(__tsan_read##bytes, bytes, stand_in::READ)           \
    STAND_IN_ACCESS(__tsan_write##bytes, bytes, stand_in::WRITE)         \
    STAND_IN_ACCESS(__tsan_unaligned_read##bytes, bytes, stand_in::READ) \
    STAND_IN_ACCESS(__tsan_unaligned_write##bytes, bytes, stand_in::WRITE)
STAND_IN_ACCESSES(1)
STAND_IN_ACCESSES(2)
STAND_IN_ACCESSES(4)
STAND_IN_ACCESSES(8)
STAND_IN_ACCESSES(16)
STAND_IN_HOOK __tsan_read_range(void* p, long bytes) {
    stand_in::runtime->access(p, bytes, stand_in::READ, STAND_IN_HERE);
}
STAND_IN_HOOK __tsan_write_range(void* p, long bytes) {
    stand_in::runtime->access(p, bytes, stand_in::WRITE, STAND_IN_HERE);
}
STAND_IN_HOOK __tsan_init() {}
STAND_IN_HOOK __tsan_func_entry(void*) {}
STAND_IN_HOOK __tsan_func_exit() {}
STAND_IN_HOOK __tsan_vptr_update(void**, void*) {}
STAND_IN_HOOK __tsan_vptr_read(void**) {}
#endif
