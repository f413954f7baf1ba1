// Joining and cutting of columns.

// One launch joins up to TABLE parts; fewer are filled up with empty ones. Wider joins take several launches, each writing the columns
// `at .. at + width` of rows of `total`, where `width` is what its parts have together.

// Columns side by side: x_k [rows, w_k] into y. One thread per element of the result.
KERNEL __launch_bounds__(256) concat_fwd(
    const __grid_constant__ Table x, REAL* __restrict__ y, int w0, int w1, int w2, int w3, int w4, int w5, int w6, int w7, int n,
    int width, int at, int total) {
    int w[TABLE] = {w0, w1, w2, w3, w4, w5, w6, w7};
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / width, c = (int)i % width;
        REAL* to = y + (long long)row * total + at + c;
#pragma unroll
        for (int k = 0; k < TABLE; k++) {
            if (c >= 0 && c < w[k]) *to = x.at[k][row * w[k] + c];
            c -= w[k];
        }
    }
}

KERNEL __launch_bounds__(256) concat_bwd(
    const REAL* __restrict__ dy, REAL* dx0, int add0, REAL* dx1, int add1, REAL* dx2, int add2, REAL* dx3, int add3, REAL* dx4,
    int add4, REAL* dx5, int add5, REAL* dx6, int add6, REAL* dx7, int add7, int w0, int w1, int w2, int w3, int w4, int w5, int w6,
    int w7, int n, int width, int at, int total) {
    REAL* dx[TABLE] = {dx0, dx1, dx2, dx3, dx4, dx5, dx6, dx7};
    int add[TABLE] = {add0, add1, add2, add3, add4, add5, add6, add7};
    int w[TABLE] = {w0, w1, w2, w3, w4, w5, w6, w7};
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / width, c = (int)i % width;
        REAL g = dy[(long long)row * total + at + c];
#pragma unroll
        for (int k = 0; k < TABLE; k++) {
            if (c >= 0 && c < w[k] && dx[k]) put(dx[k], row * w[k] + c, g, add[k]);
            c -= w[k];
        }
    }
}

// Columns first .. first + width of rows of `total`, from row `from` on. One thread per element of the result.
KERNEL __launch_bounds__(256) window_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, int from, int first, int width, int total) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = x[(from + i / width) * total + first + i % width];
}

// Gradient of rows from .. from + n/width and these columns: added to the window, or written together with zeros around it.
KERNEL __launch_bounds__(256) window_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int all, int from, int first, int width, int total) {
    if (add_dx) {
        for (long long i = first_element(); i < n; i += element_stride()) dx[(from + i / width) * total + first + i % width] += dy[i];
        return;
    }
    int rows = n / width;
    for (long long i = first_element(); i < all; i += element_stride()) {
        int row = (int)(i / total) - from, c = (int)(i % total) - first;
        dx[i] = row >= 0 && row < rows && c >= 0 && c < width ? dy[row * width + c] : (REAL)0;
    }
}
