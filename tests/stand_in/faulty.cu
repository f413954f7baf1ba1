// Each kernel has one planted fault.

extern "C" __global__ void write_past_end(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) out[i] = x[0];
}
extern "C" __global__ void read_past_end(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i + 1];
}
extern "C" __global__ void no_guard(const float* x, float* out, int) {
    out[100 * blockIdx.x + threadIdx.x] = x[0];
}
extern "C" __global__ void partly_written(const float* x, float* out, int n) {
    int i = threadIdx.x;
    if (i < n - 1) out[i] = x[i];
}
extern "C" __global__ void missing_barrier(const float* x, float* out, int) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void missing_warp_barrier(const float* x, float* out, int) {
    __shared__ float tile[32];
    if (threadIdx.x >= 32) return;
    tile[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = tile[31 - threadIdx.x];
}
extern "C" __global__ void missing_second_barrier(const float* x, float* out, int) {
    __shared__ float tile[128];
    for (int round = 0; round < 2; round++) {
        tile[threadIdx.x] = x[threadIdx.x] + round;
        __syncthreads();
        out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
    }
}
extern "C" __global__ void race_between_blocks(const float* x, float* out, int) {
    if (threadIdx.x == 0) out[0] = blockIdx.x == 0 ? x[0] : out[0] + x[2];
}
extern "C" __global__ void divergent_barrier(const float* x, float* out, int) {
    if (threadIdx.x < 64) __syncthreads();
    out[threadIdx.x] = x[0];
    __syncthreads();
    out[threadIdx.x] += x[1];
}
extern "C" __global__ void deadlock(const float* x, float* out, int) {
    float v = x[threadIdx.x];
    if (threadIdx.x != 3) v = __shfl_sync(0xffffffffu, v, 0);
    else __syncthreads();
    out[threadIdx.x] = v;
}
extern "C" __global__ void shuffle_outside_mask(const float* x, float* out, int) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_sync(0x0000ffffu, v, 20);
    out[threadIdx.x] = v;
}
extern "C" __global__ void misaligned(const float* x, float* out, int) {
    if (threadIdx.x == 0) *(float4*)(out + 1) = make_float4(x[0], x[1], x[2], x[3]);
}
extern "C" __global__ void shared_past_end(const float* x, float* out, int) {
    extern __shared__ float tile[];
    tile[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = threadIdx.x ? tile[threadIdx.x] : 0;
}
extern "C" __global__ void shared_unwritten(const float* x, float* out, int) {
    __shared__ float tile[128];
    if (threadIdx.x < 16) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void array_index(const float* x, float* out, int n) {
    __shared__ float tile[32];
    if (threadIdx.x < 32) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[(threadIdx.x + n) & 63];
}
extern "C" __global__ void index_overflow(const float* x, float* out, int n) {
    int i = (int)(threadIdx.x + 1) * n * 1000000;
    out[threadIdx.x] = i > 0 ? x[0] : x[1];
}
extern "C" __global__ void division_by_zero(const float* x, float* out, int n) {
    out[threadIdx.x] = x[10 / (n - 128)];
}
#ifdef HOST_DEVICE_FUNCTIONS
extern "C" __global__ void copy_not_awaited(const float* x, float* out, int) {
    __shared__ alignas(16) float tile[128];
    copy_async_4(&tile[threadIdx.x], x + threadIdx.x);
    copy_async_commit();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
    copy_async_wait<0>();
}
extern "C" __global__ void copy_not_committed(const float* x, float* out, int) {
    __shared__ alignas(16) float tile[128];
    copy_async_4(&tile[threadIdx.x], x + threadIdx.x);
    copy_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void mma_in_divergent_code(const float* x, float* out, int) {
    float d[4] = {0, 0, 0, 0};
    unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
    if (threadIdx.x % 32 < 16) return;
    mma_tf32(d, a, b);
    out[threadIdx.x] = d[0] + x[0];
}
#endif
