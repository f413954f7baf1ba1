// Means over squares of side × side pixels. One thread per element of what is written.

// x [.., h·side, w·side] -> y [.., h, w], n elements in all.
KERNEL __launch_bounds__(256) average_pool_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, int w, int side, REAL share) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        const REAL* corner = x + (i / w * side * w + i % w) * side;
        REAL sum = 0;
        for (int r = 0; r < side; r++) {
            for (int c = 0; c < side; c++) sum += corner[(long long)r * side * w + c];
        }
        y[i] = sum * share;
    }
}

// n is the number of elements of dx.
KERNEL __launch_bounds__(256) average_pool_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int w, int side,
                                               REAL share) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long row = i / (side * w);
        put(dx, i, dy[row / side * w + (int)(i % (side * w)) / side] * share, add_dx);
    }
}
