// The same elements in another order, some of them, or some of them several times.

// y [n] = x at `start` and further by the steps: `sizes` holds the sizes of y's dimensions, then the steps.
KERNEL __launch_bounds__(256) view_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, int start, int rank,
                                       const __grid_constant__ SizeList sizes) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long rest = i, at = start;
        for (int k = rank - 1; k >= 0; k--) {
            at += rest % sizes.at[k] * sizes.at[rank + k];
            rest /= sizes.at[k];
        }
        y[i] = x[at];
    }
}

// One thread per element of dx [n], which collects what was made of it. `of_x` holds for each dimension of x its size, which part of it is
// in y (first, count), and the step from one to the next there; `of_y` the size and the step of each dimension that repeats, `times` in all.
KERNEL __launch_bounds__(256) view_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int rank,
                                       const __grid_constant__ SizeList of_x, int times, int repeated, const __grid_constant__ SizeList of_y) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long rest = i, at = 0;
        bool inside = true;
        for (int k = rank - 1; k >= 0; k--) {
            int place = (int)(rest % of_x.at[4 * k]) - of_x.at[4 * k + 1];
            inside = inside && place >= 0 && place < of_x.at[4 * k + 2];
            at += (long long)place * of_x.at[4 * k + 3];
            rest /= of_x.at[4 * k];
        }
        REAL sum = 0;
        for (int t = 0; inside && t < times; t++) {
            long long from = at;
            int which = t;
            for (int k = repeated - 1; k >= 0; k--) {
                from += (long long)(which % of_y.at[2 * k]) * of_y.at[2 * k + 1];
                which /= of_y.at[2 * k];
            }
            sum += dy[from];
        }
        put(dx, i, sum, add_dx);
    }
}
