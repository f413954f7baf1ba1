// The update of all parameters.

// What rates are multiplied with in update t: src/optim.rs has the formula.
__device__ __forceinline__ double schedule(double t, u64 warmup, u64 updates, double end) {
    double rise = warmup == 0 || t >= (double)warmup ? 1.0 : t / (double)warmup;
    if (end == 1.0) return rise;
    double part = t >= (double)updates ? 1.0 : t / (double)updates;
    return rise * (end + (1.0 - end) * 0.5 * (1.0 + cos(PI * part)));
}

// Adam: m, v, p of one learning-rate group. `healthy` [1] (or null): nothing is changed where it is 0. `update` counts from 1.
KERNEL __launch_bounds__(256) adam(const REAL* g, const REAL* healthy, REAL* p, REAL* m, REAL* v, int n, REAL rate, u64 update,
                                   const unsigned* clock, u64 warmup, u64 updates, REAL end) {
    if (healthy && healthy[0] == (REAL)0) return;
    double t = (double)clock_step(update, clock);
    REAL correct1 = (REAL)(1.0 / (1.0 - pow(BETA1, t))), correct2 = (REAL)(1.0 / (1.0 - pow(BETA2, t)));
    rate *= (REAL)schedule(t, warmup, updates, end);
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL grad = g[i];
        REAL mean = (REAL)BETA1 * m[i] + (REAL)(1.0 - BETA1) * grad;
        REAL square = (REAL)BETA2 * v[i] + (REAL)(1.0 - BETA2) * (grad * grad);
        m[i] = mean;
        v[i] = square;
        p[i] -= rate * correct1 * mean / (sqrt(square * correct2) + (REAL)EPS);
    }
}
