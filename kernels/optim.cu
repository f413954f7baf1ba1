// Gradient descent with momentum: v = momentum·v + g + decay·p, p -= rate·v.
KERNEL __launch_bounds__(256) sgd(const REAL* __restrict__ g, REAL* __restrict__ p, REAL* __restrict__ v, int n, REAL rate, REAL momentum,
                                  REAL decay) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL speed = momentum * v[i] + g[i] + decay * p[i];
        v[i] = speed;
        p[i] -= rate * speed;
    }
}

// x *= factor
KERNEL __launch_bounds__(256) scale(REAL* __restrict__ x, int n, REAL factor) {
    for (long long i = first_element(); i < n; i += element_stride()) x[i] *= factor;
}
