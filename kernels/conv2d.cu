// y = w ⋆ x + b: x [images, ins, h, w], w [outs, ins, high, wide] -> y [images, outs, rows, columns].

struct Conv {
    int images, ins, h, w, outs, high, wide, stride, padding, rows, columns;

    __device__ __forceinline__ Conv(const SizeList& s)
        : images(s.at[0]), ins(s.at[1]), h(s.at[2]), w(s.at[3]), outs(s.at[4]), high(s.at[5]), wide(s.at[6]), stride(s.at[7]),
          padding(s.at[8]), rows(s.at[9]), columns(s.at[10]) {}
};

// One thread per result.
KERNEL __launch_bounds__(256) conv2d_fwd(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                         REAL* __restrict__ y, int n, const __grid_constant__ SizeList sizes) {
    Conv s(sizes);
    for (long long i = first_element(); i < n; i += element_stride()) {
        int left = (int)(i % s.columns) * s.stride - s.padding, top = (int)(i / s.columns % s.rows) * s.stride - s.padding;
        int o = (int)(i / s.columns / s.rows % s.outs);
        long long image = i / s.columns / s.rows / s.outs;
        REAL sum = 0;
        for (int c = 0; c < s.ins; c++) {
            const REAL *plane = x + (image * s.ins + c) * s.h * s.w, *taps = w + ((long long)o * s.ins + c) * s.high * s.wide;
            for (int r = max(-top, 0); r < min(s.high, s.h - top); r++)
                for (int q = max(-left, 0); q < min(s.wide, s.w - left); q++)
                    sum += taps[r * s.wide + q] * plane[(top + r) * s.w + left + q];
        }
        y[i] = sum + b[o];
    }
}

// One thread per element of dx, which collects from the results that it contributed to.
KERNEL __launch_bounds__(256) conv2d_bwd_input(const REAL* __restrict__ w, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx,
                                               int n, const __grid_constant__ SizeList sizes) {
    Conv s(sizes);
    for (long long i = first_element(); i < n; i += element_stride()) {
        int column = (int)(i % s.w) + s.padding, row = (int)(i / s.w % s.h) + s.padding, c = (int)(i / s.w / s.h % s.ins);
        long long image = i / s.w / s.h / s.ins;
        REAL sum = 0;
        for (int o = 0; o < s.outs; o++) {
            const REAL *plane = dy + (image * s.outs + o) * s.rows * s.columns, *taps = w + ((long long)o * s.ins + c) * s.high * s.wide;
            for (int r = row % s.stride; r < min(s.high, row + 1); r += s.stride)
                for (int q = column % s.stride; q < min(s.wide, column + 1); q += s.stride) {
                    int from_row = (row - r) / s.stride, from_column = (column - q) / s.stride;
                    if (from_row < s.rows && from_column < s.columns)
                        sum += taps[r * s.wide + q] * plane[from_row * s.columns + from_column];
                }
        }
        put(dx, i, sum, add_dx);
    }
}

// One block per element of dw.
KERNEL __launch_bounds__(256) conv2d_bwd_weights(const REAL* __restrict__ x, const REAL* __restrict__ dy, REAL* __restrict__ dw, int add_dw,
                                                 const __grid_constant__ SizeList sizes) {
    Conv s(sizes);
    int i = blockIdx.x, q = i % s.wide, r = i / s.wide % s.high, c = i / s.wide / s.high % s.ins, o = i / s.wide / s.high / s.ins;
    long long places = (long long)s.rows * s.columns;
    REAL sum = 0;
    for (long long k = threadIdx.x; k < s.images * places; k += blockDim.x) {
        long long image = k / places;
        int row = (int)(k / s.columns % s.rows) * s.stride - s.padding + r, column = (int)(k % s.columns) * s.stride - s.padding + q;
        if (row >= 0 && row < s.h && column >= 0 && column < s.w)
            sum += dy[(image * s.outs + o) * places + k % places] * x[((image * s.ins + c) * s.h + row) * s.w + column];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) put(dw, i, sum, add_dw);
}

// One block per element of db.
KERNEL __launch_bounds__(256) conv2d_bwd_bias(const REAL* __restrict__ dy, REAL* __restrict__ db, int add_db,
                                              const __grid_constant__ SizeList sizes) {
    Conv s(sizes);
    int o = blockIdx.x;
    long long places = (long long)s.rows * s.columns;
    REAL sum = 0;
    for (long long k = threadIdx.x; k < s.images * places; k += blockDim.x)
        sum += dy[(k / places * s.outs + o) * places + k % places];
    sum = block_sum(sum);
    if (threadIdx.x == 0) put(db, o, sum, add_db);
}
