// The update of all parameters.

// What rates are multiplied with in update t: src/optim.rs has the formula.
__device__ __forceinline__ double schedule(double t, u64 warmup, u64 updates, double end) {
    double rise = warmup == 0 || t >= (double)warmup ? 1.0 : t / (double)warmup;
    if (end == 1.0) return rise;
    double part = t >= (double)updates ? 1.0 : t / (double)updates;
    return rise * (end + (1.0 - end) * 0.5 * (1.0 + cos(PI * part)));
}

// lengths[2·block], [2·block + 1] = the sums of g² and of v over the block's share of all parameters, in double precision.
KERNEL __launch_bounds__(256) lengths(const REAL* g, const REAL* v, REAL* lengths, int n) {
    double squares = 0, usual = 0;
    for (long long i = first_element(); i < n; i += element_stride()) {
        squares += (double)g[i] * (double)g[i];
        usual += (double)v[i];
    }
    squares = block_sum(squares);
    usual = block_sum(usual);
    if (threadIdx.x != 0) return;
    lengths[2 * blockIdx.x] = (REAL)squares;
    lengths[2 * blockIdx.x + 1] = (REAL)usual;
}

// Adam: m, v, p of one learning-rate group. `healthy` [1] (or null): nothing is changed where it is 0. `update` counts from 1. With the
// `lengths` [2·parts] of above (or null), gradients longer than `clip` times what is usual become so long.
KERNEL __launch_bounds__(256) adam(const REAL* g, const REAL* healthy, REAL* p, REAL* m, REAL* v, int n, REAL rate, u64 update,
                                   const unsigned* clock, u64 warmup, u64 updates, REAL end, const REAL* lengths, int parts, REAL clip) {
    __shared__ REAL corrections[2];
    if (healthy && healthy[0] == (REAL)0) return;
    double t = (double)clock_step(update, clock);
    REAL shorter = (REAL)1;
    if (lengths && t > 1) {
        bool mine = threadIdx.x < parts;
        double squares = block_sum(mine ? (double)lengths[2 * threadIdx.x] : 0.0);
        double usual = block_sum(mine ? (double)lengths[2 * threadIdx.x + 1] : 0.0) / (1.0 - pow(BETA2, t - 1));
        double longest = (double)clip * (double)clip * usual;
        if (squares > longest) shorter = (REAL)sqrt(longest / squares);
    }
    // Powers in double precision are slow, so two threads take them for all.
    if (threadIdx.x == 0) corrections[0] = rate * (REAL)schedule(t, warmup, updates, end) * (REAL)(1.0 / (1.0 - pow(BETA1, t)));
    if (threadIdx.x == WARP) corrections[1] = (REAL)(1.0 / (1.0 - pow(BETA2, t)));
    __syncthreads();
    REAL step = corrections[0], correct2 = corrections[1];
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL grad = shorter * g[i];
        REAL mean = (REAL)BETA1 * m[i] + (REAL)(1.0 - BETA1) * grad;
        REAL square = (REAL)BETA2 * v[i] + (REAL)(1.0 - BETA2) * (grad * grad);
        m[i] = mean;
        v[i] = square;
        p[i] -= step * mean / (sqrt(square * correct2) + (REAL)EPS);
    }
}
