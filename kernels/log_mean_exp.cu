// y = log (1/P) sum_p exp w_p for w [P, B]: one warp per column.

// The logarithm of no weight at all.
__device__ __forceinline__ REAL log_zero() { return log((REAL)0); }

// The largest weight of column j (in every lane), and the sum of exp(w - largest).
__device__ REAL max_and_sum(const REAL* w, int particles, int b, int j, int lane, REAL* sum) {
    REAL max = log_zero(), s = 0;
    for (int p = lane; p < particles; p += WARP) max = larger(max, w[(long long)p * b + j]);
    max = warp_max(max);
    for (int p = lane; p < particles; p += WARP) s += exp(w[(long long)p * b + j] - max);
    *sum = warp_sum(s);
    return max;
}

KERNEL __launch_bounds__(128) log_mean_exp_fwd(const REAL* __restrict__ w, REAL* __restrict__ y, int particles, int b, REAL per_particle) {
    int j = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (j >= b) return;
    REAL sum, max = max_and_sum(w, particles, b, j, lane, &sum);
    // exp(w - max) is NaN if all weights are zero.
    if (lane == 0) y[j] = max == log_zero() ? max : max + log(sum * per_particle);
}

KERNEL __launch_bounds__(128) log_mean_exp_bwd(
    const REAL* __restrict__ w, const REAL* __restrict__ dy, REAL* __restrict__ dw, int add_dw, int particles, int b) {
    int j = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (j >= b) return;
    REAL sum, max = max_and_sum(w, particles, b, j, lane, &sum);
    for (int p = lane; p < particles; p += WARP) {
        long long i = (long long)p * b + j;
        put(dw, i, dy[j] * exp(w[i] - max) / sum, add_dw);
    }
}
