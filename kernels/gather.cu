// Rows by their numbers: y [n/width, width] from x [rows, width]. A number of no row gives NaN.
KERNEL __launch_bounds__(256) gather_fwd(const REAL* __restrict__ x, const REAL* __restrict__ which, REAL* __restrict__ y, int n, int width,
                                         int rows) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL row = which[i / width];
        bool inside = row >= 0 && row < (REAL)rows && row == floor(row);
        y[i] = inside ? x[(long long)row * width + i % width] : log((REAL)-1);
    }
}

// One thread per element of dx [n], which looks for its row in all `count` numbers: so sums have one order.
KERNEL __launch_bounds__(256) gather_bwd(const REAL* __restrict__ which, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx,
                                         int n, int width, int count) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL row = (REAL)(i / width), sum = 0;
        for (long long k = 0; k < count; k++)
            if (which[k] == row) sum += dy[k * width + i % width];
        put(dx, i, sum, add_dx);
    }
}
