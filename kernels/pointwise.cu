// y = f(x, a), and its gradients: `value`, `slope` and `slope_of_second` are printed in front of this file, from the table in
// src/kernels/pointwise.rs. Where a is null it is `number`.

KERNEL __launch_bounds__(256) pointwise_fwd(const REAL* __restrict__ x, const REAL* __restrict__ a, REAL* __restrict__ y, int n, int f,
                                            REAL number) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = value(f, x[i], a ? a[i] : number, 0);
}

KERNEL __launch_bounds__(256) pointwise_bwd(const REAL* __restrict__ x, const REAL* __restrict__ a, const REAL* __restrict__ y,
                                            const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ da,
                                            int add_da, int n, int f, REAL number) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL second = a ? a[i] : number;
        if (dx) put(dx, i, dy[i] * slope(f, x[i], second, y[i]), add_dx);
        if (da) put(da, i, dy[i] * slope_of_second(f, x[i], second, y[i]), add_da);
    }
}
