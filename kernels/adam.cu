// The update of all parameters.

// Adam: m, v, p of one learning-rate group. `healthy` [1] (or null): nothing is changed where it is 0. `update` counts from 1.
KERNEL __launch_bounds__(256) adam(const REAL* g, const REAL* healthy, REAL* p, REAL* m, REAL* v, int n, REAL rate, u64 update,
                                   const unsigned* clock) {
    if (healthy && healthy[0] == (REAL)0) return;
    double t = (double)clock_step(update, clock);
    REAL correct1 = (REAL)(1.0 / (1.0 - pow(BETA1, t))), correct2 = (REAL)(1.0 / (1.0 - pow(BETA2, t)));
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL grad = g[i];
        REAL mean = (REAL)BETA1 * m[i] + (REAL)(1.0 - BETA1) * grad;
        REAL square = (REAL)BETA2 * v[i] + (REAL)(1.0 - BETA2) * (grad * grad);
        m[i] = mean;
        v[i] = square;
        p[i] -= rate * correct1 * mean / (sqrt(square * correct2) + (REAL)EPS);
    }
}
