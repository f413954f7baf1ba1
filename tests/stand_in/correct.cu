// Kernels that are right: they give the same results in every order, and the check mode finds nothing in them.

template <class T> __device__ __forceinline__ T warp_sum(T x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// The template has shared memory of its own.
template <class T> __device__ T block_sum(T x) {
    __shared__ T part[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : (T)0);
    __syncthreads();
    return x;
}

// out[b] = sum of x[b, 0..n): one block per row.
extern "C" __global__ void __launch_bounds__(256) row_sums(const float* __restrict__ x, float* __restrict__ out, int n) {
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[(long long)blockIdx.x * n + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// y = max(a·x + y, 0), four numbers at a time.
extern "C" __global__ void axpy_relu(const float* __restrict__ x, float* __restrict__ y, float a, int n) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i + 3 < n) {
        float4 u = *(const float4*)(x + i), v = *(const float4*)(y + i);
        *(float4*)(y + i) = make_float4(fmaxf(fmaf(a, u.x, v.x), 0.f), fmaxf(fmaf(a, u.y, v.y), 0.f),
                                        fmaxf(fmaf(a, u.z, v.z), 0.f), fmaxf(fmaf(a, u.w, v.w), 0.f));
    } else {
        for (; i < n; i++) y[i] = fmaxf(fmaf(a, x[i], y[i]), 0.f);
    }
}

// The reverse of each block, through dynamic shared memory.
extern "C" __global__ void reverse_blocks(const float* __restrict__ x, float* __restrict__ out) {
    extern __shared__ float tile[];
    int i = threadIdx.x, n = blockDim.x, first = blockIdx.x * n;
    tile[i] = x[first + i];
    __syncthreads();
    out[first + i] = tile[n - 1 - i];
}

// Neighbouring bytes by different threads: no race.
extern "C" __global__ void threshold(const float* __restrict__ x, unsigned char* __restrict__ out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] > 0;
}

extern "C" __global__ void histogram(const unsigned* __restrict__ x, unsigned* __restrict__ bins, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[x[i] % 8], 1u);
}

// y[i] += 1, for graphs: each replay adds one.
extern "C" __global__ void add_one(float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += 1;
}

// y[i] *= 2, which must not change places with add_one.
extern "C" __global__ void double_all(float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] *= 2;
}

__constant__ float coefficients[4];
extern "C" __global__ void cubic(const float* __restrict__ x, float* __restrict__ y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = ((coefficients[3] * x[i] + coefficients[2]) * x[i] + coefficients[1]) * x[i] + coefficients[0];
}

#ifdef HOST_DEVICE_FUNCTIONS
// c[16, 8] = a[16, 8]·b[8, 8] by one warp, operands in tf32.
extern "C" __global__ void product_tf32(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned fragment_a[4] = {round_tf32(a[group * 8 + t]), round_tf32(a[(group + 8) * 8 + t]), round_tf32(a[group * 8 + t + 4]),
                              round_tf32(a[(group + 8) * 8 + t + 4])};
    unsigned fragment_b[2] = {round_tf32(b[t * 8 + group]), round_tf32(b[(t + 4) * 8 + group])};
    float d[4] = {0, 0, 0, 0};
    mma_tf32(d, fragment_a, fragment_b);
    for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// c[16, 8] += a[16, 16]·b[16, 8] by one warp, operands in bf16.
extern "C" __global__ void product_bf16(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c) {
    int group = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned fragment_a[4], fragment_b[2];
    for (int i = 0; i < 4; i++) {
        const float* at = a + (group + i % 2 * 8) * 16 + i / 2 * 8 + 2 * t;
        fragment_a[i] = pack_bf16(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) {
        const float* at = b + (i * 8 + 2 * t) * 8 + group;
        fragment_b[i] = pack_bf16(at[0], at[8]);
    }
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = c[(group + i / 2 * 8) * 8 + 2 * t + i % 2];
    mma_bf16(d, fragment_a, fragment_b);
    for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// The bits of the rounded numbers, for a look at the rounding.
extern "C" __global__ void roundings(const float* __restrict__ x, unsigned* __restrict__ tf32, unsigned* __restrict__ bf16, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    tf32[i] = round_tf32(x[i]);
    bf16[i] = pack_bf16(x[i], -x[i]);
}

// The reverse of 64 × blocks numbers with two stages in flight; each warp copies 4 and 16 bytes at a time.
extern "C" __global__ void reverse_staged(const float* __restrict__ x, float* __restrict__ out, int stages) {
    __shared__ alignas(16) float tile[2][64];
    int i = threadIdx.x;
    for (int stage = 0; stage < stages + 1; stage++) {
        if (stage < stages) {
            const float* from = x + stage * 64;
            if (i < 8) copy_async_16(&tile[stage % 2][4 * i], from + 4 * i);
            else if (i >= 32) copy_async_4(&tile[stage % 2][i], from + i);
        }
        copy_async_commit();
        if (stage > 0) {
            copy_async_wait<1>();
            __syncthreads();
            out[(stage - 1) * 64 + i] = tile[(stage - 1) % 2][63 - i];
            __syncthreads();  // before the next copies into this half
        }
    }
}
#endif
