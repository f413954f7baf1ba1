// What every kernel file begins with: the number type, launch helpers, sums in a fixed order, and random numbers.
//
// One source serves both precisions: REAL is float or double. A kernel takes its inputs first (const), then its outputs, then
// scalars, all by value. A gradient is passed as a pointer (null: not wanted) and a flag that says whether to add to what is
// there or to overwrite it; `put` does either.

#define KERNEL extern "C" __global__ void
#define WARP 32
#define ALL_LANES 0xffffffffu

static_assert(sizeof(REAL) == 4 || sizeof(REAL) == 8, "REAL is float or double");

// A multiple of REAL's size that one load moves: 16 bytes.
struct alignas(16) Pack {
    REAL at[16 / sizeof(REAL)];
};
#define PACK ((int)(16 / sizeof(REAL)))

// Inputs whose number is known at run time, by value; null pointers in the places beyond them. A kernel takes it as
// `const __grid_constant__ Table`, so that no thread makes a copy of it.
struct Table {
    const REAL* at[TABLE];
};

// Sizes, by value. A kernel takes it as `const __grid_constant__ SizeList`.
struct SizeList {
    int at[SIZES];
};

__device__ __forceinline__ REAL real(double x) { return (REAL)x; }

// Of four things the one of a call.
template <class T> __device__ __forceinline__ T of_call(int call, T a, T b, T c, T d) {
    return call == 0 ? a : call == 1 ? b : call == 2 ? c : d;
}

// out[i] = g, or out[i] += g.
__device__ __forceinline__ void put(REAL* out, long long i, REAL g, int add) { out[i] = add ? out[i] + g : g; }

// The first element of this thread, and the distance to its next one.
__device__ __forceinline__ long long first_element() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ long long element_stride() { return (long long)gridDim.x * blockDim.x; }

// ---- Functions of a number ----------------------------------------------------------------------------------------------

__device__ __forceinline__ REAL larger(REAL a, REAL b) { return a > b ? a : b; }
__device__ __forceinline__ REAL smaller(REAL a, REAL b) { return a < b ? a : b; }
__device__ __forceinline__ REAL sigmoid(REAL a) { return (REAL)1 / ((REAL)1 + exp(-a)); }
// d sigmoid(a) / d a without the cancellation of 1 - sigmoid for large a.
__device__ __forceinline__ REAL sigmoid_slope(REAL a) {
    REAL t = exp(-fabs(a));
    return t / (((REAL)1 + t) * ((REAL)1 + t));
}
// log(1 + e^a).
__device__ __forceinline__ REAL softplus(REAL a) { return larger(a, (REAL)0) + log1p(exp(-fabs(a))); }

// ---- Sums in a fixed order ----------------------------------------------------------------------------------------------

// The sum over a warp, in every lane. All 32 lanes must call it.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ REAL warp_max(REAL x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over a block, in every thread. All threads must call it; blockDim.x is a multiple of 32, at most 1024.
template <class T> __device__ T block_sum(T x) {
    __shared__ T part[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? part[lane] : (T)0);
    __syncthreads();  // `part` may be used again by the next call
    return x;
}

// The largest value of a block, in every thread; conditions as for block_sum.
__device__ inline REAL block_max(REAL x) {
    __shared__ REAL part[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) part[warp] = x;
    __syncthreads();
    x = warp_max(part[lane < warps ? lane : 0]);
    __syncthreads();  // `part` may be used again by the next call
    return x;
}

// ---- Random numbers: Philox4x32-10, as in src/rng.rs --------------------------------------------------------------------

typedef unsigned long long u64;

// The step whose numbers are wanted: the one given by value plus the device's clock, which counts the replays of a captured
// graph (0 outside of one), so that every replay draws new numbers.
__device__ __forceinline__ u64 clock_step(u64 step, const unsigned* clock) {
    return step + (clock[0] | (u64)clock[1] << 32);
}

__device__ __forceinline__ uint4 philox(u64 seed, u64 step, unsigned stream, unsigned block) {
    unsigned c0 = block, c1 = stream, c2 = (unsigned)step, c3 = (unsigned)(step >> 32);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned a_high = __umulhi(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
        unsigned b_high = __umulhi(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// The bits of a float that these types have.
#define TF32_BITS 0xffffe000u
#define BF16_BITS 0xffff0000u

// x, but cut to the largest number of such a type where rounding to it might be to infinity. An infinite x and NaN stay what they are.
template <unsigned BITS> __device__ __forceinline__ float roundable(float x) {
    unsigned bits = __float_as_uint(x);
    return (bits & BITS & 0x7fffffffu) == (BITS & 0x7f7fffffu) ? __uint_as_float(bits & BITS) : x;
}

// ---- Tensor cores and asynchronous copies -------------------------------------------------------------------------------
// A host that runs these kernels for tests brings its own versions of these functions.
#ifndef HOST_DEVICE_FUNCTIONS

// Rounded to the 10 mantissa bits of tf32, the largest numbers to infinity.
__device__ __forceinline__ unsigned round_tf32(float x) {
    unsigned y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

// Two bf16 in one word, `low` in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// d += a·b for a 16×8 (row-major), b 8×8, d 16×8. With g = lane/4 and t = lane%4, a lane holds
// a: (g, t) (g+8, t) (g, t+4) (g+8, t+4)   b: (t, g) (t+4, g)   d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1).
__device__ __forceinline__ void mma_tf32(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a·b for a 16×16, b 16×8, d 16×8. A word holds two neighbours along the inner dimension:
// a: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)   b: (2t.., g) (2t+8.., g)   d as above.
__device__ __forceinline__ void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 (or 4) bytes from device memory to shared memory, both aligned, without passing through registers.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global) : "memory");
}
// Ends a group of copies; `copy_async_wait<N>` waits until at most N groups of this thread are under way.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#endif

// An operand of mma_tf32: rounded, and finite if x is.
__device__ __forceinline__ unsigned to_tf32(float x) { return round_tf32(roundable<TF32_BITS>(x)); }
