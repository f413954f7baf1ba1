// Images divided by their maximum, which is a constant in differentiation. One block per image.

// x [N, pixels] -> y = x / by, by [N] = the maximum where that is at least `floor`, else 1
KERNEL __launch_bounds__(512) max_norm_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, REAL* __restrict__ by, int pixels,
                                           REAL floor) {
    const REAL* in = x + (long long)blockIdx.x * pixels;
    REAL* out = y + (long long)blockIdx.x * pixels;
    REAL peak = 0;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) peak = larger(in[p], peak);
    peak = block_max(peak);
    REAL divisor = peak >= floor ? peak : (REAL)1;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) out[p] = in[p] / divisor;
    if (threadIdx.x == 0) by[blockIdx.x] = divisor;
}

KERNEL __launch_bounds__(512) max_norm_bwd(const REAL* __restrict__ by, const REAL* __restrict__ dy, REAL* dx, int add_dx, int pixels) {
    long long first = (long long)blockIdx.x * pixels;
    REAL divisor = by[blockIdx.x];
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) put(dx, first + p, dy[first + p] / divisor, add_dx);
}
