// The mean or the largest of every window of size × size pixels. One thread per element of what is written.

struct Windows {
    int h, w, rows, columns, size, stride, padding;

    __device__ __forceinline__ Windows(const SizeList& s)
        : h(s.at[0]), w(s.at[1]), rows(s.at[2]), columns(s.at[3]), size(s.at[4]), stride(s.at[5]), padding(s.at[6]) {}
};

// x [planes, h, w] -> y [planes, rows, columns]; what lies outside of a plane counts as 0.
KERNEL __launch_bounds__(256) average_pool_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n,
                                               const __grid_constant__ SizeList sizes, REAL share) {
    Windows s(sizes);
    for (long long i = first_element(); i < n; i += element_stride()) {
        const REAL* plane = x + i / s.columns / s.rows * s.h * s.w;
        int top = (int)(i / s.columns % s.rows) * s.stride - s.padding, left = (int)(i % s.columns) * s.stride - s.padding;
        REAL sum = 0;
        for (int r = max(top, 0); r < min(top + s.size, s.h); r++)
            for (int c = max(left, 0); c < min(left + s.size, s.w); c++) sum += plane[r * s.w + c];
        y[i] = sum * share;
    }
}

// at [planes, rows, columns]: which pixel of its window the largest is, the first of several.
KERNEL __launch_bounds__(256) max_pool_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, REAL* __restrict__ at, int n,
                                           const __grid_constant__ SizeList sizes) {
    Windows s(sizes);
    for (long long i = first_element(); i < n; i += element_stride()) {
        const REAL* plane = x + i / s.columns / s.rows * s.h * s.w;
        int top = (int)(i / s.columns % s.rows) * s.stride - s.padding, left = (int)(i % s.columns) * s.stride - s.padding, which = -1;
        REAL most = 0;
        for (int r = max(top, 0); r < min(top + s.size, s.h); r++)
            for (int c = max(left, 0); c < min(left + s.size, s.w); c++) {
                REAL value = plane[r * s.w + c];
                if (which < 0 || value > most || value != value) {
                    most = value;
                    which = (r - top) * s.size + c - left;
                }
            }
        y[i] = most;
        at[i] = (REAL)which;
    }
}

// A pixel collects from all windows that it lies in: of the means (`at` is null) its share of each, else all of those whose largest it is.
KERNEL __launch_bounds__(256) pool_bwd(const REAL* __restrict__ at, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n,
                                       const __grid_constant__ SizeList sizes, REAL share) {
    Windows s(sizes);
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long plane = i / s.w / s.h * s.rows * s.columns;
        int row = (int)(i / s.w % s.h) + s.padding, column = (int)(i % s.w) + s.padding;
        int top = row < s.size ? 0 : (row - s.size) / s.stride + 1, left = column < s.size ? 0 : (column - s.size) / s.stride + 1;
        REAL sum = 0;
        for (int r = top; r < s.rows && r * s.stride <= row; r++)
            for (int c = left; c < s.columns && c * s.stride <= column; c++) {
                long long window = plane + r * s.columns + c;
                int place = (row - r * s.stride) * s.size + column - c * s.stride;
                if (!at || at[window] == (REAL)place) sum += dy[window];
            }
        put(dx, i, sum * share, add_dx);
    }
}
