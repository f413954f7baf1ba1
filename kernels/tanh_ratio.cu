// y = tanh(x/w) with a slope w per image. One block per image.

KERNEL __launch_bounds__(512) tanh_ratio_fwd(const REAL* __restrict__ x, const REAL* __restrict__ slope, REAL* __restrict__ y, int pixels) {
    long long first = (long long)blockIdx.x * pixels;
    REAL steep = (REAL)1 / slope[blockIdx.x];
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) y[first + p] = tanh(x[first + p] * steep);
}

KERNEL __launch_bounds__(512) tanh_ratio_bwd(const REAL* __restrict__ x, const REAL* __restrict__ slope, const REAL* __restrict__ y,
                                             const REAL* __restrict__ dy, REAL* dx, int add_dx, REAL* dslope, int add_dslope,
                                             int pixels) {
    long long first = (long long)blockIdx.x * pixels;
    REAL w = slope[blockIdx.x], steep = (REAL)1 / w, sum = 0;
    for (int p = threadIdx.x; p < pixels; p += blockDim.x) {
        REAL t = y[first + p], d = dy[first + p] * ((REAL)1 - t * t);
        if (dx) put(dx, first + p, d * steep, add_dx);
        sum += d * x[first + p];
    }
    sum = block_sum(sum);
    if (dslope && threadIdx.x == 0) put(dslope, blockIdx.x, -sum / (w * w), add_dslope);
}
