// A bound averaged over where a drawing may end: src/ops/prefix_bound.rs, where the formulas stand. One thread per drawing.

__device__ __forceinline__ bool inside(REAL x, REAL eps) { return x >= eps && x <= (REAL)1 - eps; }
__device__ __forceinline__ REAL limited(REAL x, REAL eps) { return smaller(larger(x, eps), (REAL)1 - eps); }

// The two ways on from a step.
struct Fork {
    REAL stop, go;
};

__device__ __forceinline__ Fork fork(REAL p, REAL prior, REAL cost, REAL end, REAL next) {
    return {end + log((REAL)1 - prior) - log((REAL)1 - p), next - cost + log(prior) - log(p)};
}

// p, prior, cost [t, n] and end [t + 1, n] -> y [n], w [t + 1, n]
KERNEL __launch_bounds__(256) prefix_bound_fwd(const REAL* __restrict__ p, const REAL* __restrict__ prior, const REAL* __restrict__ cost,
                                               const REAL* __restrict__ end, REAL* __restrict__ y, REAL* __restrict__ w, int t, int n,
                                               REAL eps) {
    for (long long j = first_element(); j < n; j += element_stride()) {
        REAL next = end[(long long)t * n + j];
        w[(long long)t * n + j] = next;
        for (long long i = (long long)(t - 1) * n + j; i >= 0; i -= n) {
            REAL on = limited(p[i], eps);
            Fork ways = fork(on, limited(prior[i], eps), cost[i], end[i], next);
            w[i] = next = ((REAL)1 - on) * ways.stop + on * ways.go;
        }
        y[j] = next;
    }
}

KERNEL __launch_bounds__(256) prefix_bound_bwd(const REAL* __restrict__ p, const REAL* __restrict__ prior, const REAL* __restrict__ cost,
                                               const REAL* __restrict__ end, const REAL* __restrict__ w, const REAL* __restrict__ dy,
                                               REAL* dp, int add_dp, REAL* dprior, int add_dprior, REAL* dcost, int add_dcost, REAL* dend,
                                               int add_dend, int t, int n, REAL eps) {
    for (long long j = first_element(); j < n; j += element_stride()) {
        // The probability of being here, times dy.
        REAL here = dy[j];
        for (long long i = j; i < (long long)t * n; i += n) {
            REAL on = limited(p[i], eps), of_prior = limited(prior[i], eps);
            Fork ways = fork(on, of_prior, cost[i], end[i], w[i + n]);
            REAL stop = here * ((REAL)1 - on), go = here * on;
            if (dp) put(dp, i, inside(p[i], eps) ? here * (ways.go - ways.stop) : (REAL)0, add_dp);
            if (dprior) put(dprior, i, inside(prior[i], eps) ? go / of_prior - stop / ((REAL)1 - of_prior) : (REAL)0, add_dprior);
            if (dcost) put(dcost, i, -go, add_dcost);
            if (dend) put(dend, i, stop, add_dend);
            here = go;
        }
        if (dend) put(dend, (long long)t * n + j, here, add_dend);
    }
}
