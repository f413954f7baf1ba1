// Elementwise sums and products.

// y (+)= the sum of a_k·x_k, of `count` terms, TABLE at most.
KERNEL __launch_bounds__(256) combine_fwd(
    const __grid_constant__ Table x, REAL* __restrict__ y, int add, REAL a0, REAL a1, REAL a2, REAL a3, REAL a4, REAL a5, REAL a6, REAL a7, int count, int n) {
    REAL a[TABLE] = {a0, a1, a2, a3, a4, a5, a6, a7};
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL sum = 0;
#pragma unroll
        for (int k = 0; k < TABLE; k++) {
            if (k < count) sum += a[k] * x.at[k][i];
        }
        put(y, i, sum, add);
    }
}

// The gradients of all terms, any of which may be null.
KERNEL __launch_bounds__(256) combine_bwd(
    const REAL* __restrict__ dy, REAL* dx0, int add0, REAL* dx1, int add1, REAL* dx2, int add2, REAL* dx3, int add3, REAL* dx4,
    int add4, REAL* dx5, int add5, REAL* dx6, int add6, REAL* dx7, int add7, REAL a0, REAL a1, REAL a2, REAL a3, REAL a4, REAL a5,
    REAL a6, REAL a7, int n) {
    REAL* dx[TABLE] = {dx0, dx1, dx2, dx3, dx4, dx5, dx6, dx7};
    int add[TABLE] = {add0, add1, add2, add3, add4, add5, add6, add7};
    REAL a[TABLE] = {a0, a1, a2, a3, a4, a5, a6, a7};
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL g = dy[i];
#pragma unroll
        for (int k = 0; k < TABLE; k++) {
            if (dx[k]) put(dx[k], i, a[k] * g, add[k]);
        }
    }
}

KERNEL __launch_bounds__(256) mul_fwd(const REAL* __restrict__ x, const REAL* __restrict__ z, REAL* __restrict__ y, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = x[i] * z[i];
}

KERNEL __launch_bounds__(256) mul_bwd(const REAL* __restrict__ x, const REAL* __restrict__ z, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ dz, int add_dz, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL g = dy[i];
        if (dx) put(dx, i, z[i] * g, add_dx);
        if (dz) put(dz, i, x[i] * g, add_dz);
    }
}

// y = factor·x + offset
KERNEL __launch_bounds__(256) scale_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, REAL factor, REAL offset) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = factor * x[i] + offset;
}

KERNEL __launch_bounds__(256) scale_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, REAL factor) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, factor * dy[i], add_dx);
}

// y = log(1 + e^x)
KERNEL __launch_bounds__(256) softplus_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = softplus(x[i]);
}

KERNEL __launch_bounds__(256) softplus_bwd(const REAL* __restrict__ x, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, dy[i] * sigmoid(x[i]), add_dx);
}
