// Textbook kernels, for DOOD_CUDA_NAIVE=1: one thread per result, which reads all that it needs from device memory and adds it in the
// order of the indices. Slow, but plain enough to be believed: the optimised kernels are held against these.

// out [rows, columns] = a·b. The distances say how a's elements lie from row to row and along the inner dimension, and b's along the
// inner dimension and from column to column. Every 64 products are added up before they join the sum: single precision would suffer
// from many small numbers that join a large one.
KERNEL __launch_bounds__(256) naive_product(const REAL* __restrict__ a, const REAL* __restrict__ b, REAL* __restrict__ out, int add,
                                            int rows, int columns, int inner, int a_row, int a_inner, int b_inner, int b_column) {
    long long n = (long long)rows * columns;
    for (long long i = first_element(); i < n; i += element_stride()) {
        const REAL *left = a + i / columns * a_row, *right = b + i % columns * b_column;
        REAL sum = 0;
        for (int from = 0; from < inner; from += 64) {
            int to = inner - from < 64 ? inner : from + 64;
            REAL part = 0;
            for (long long k = from; k < to; k++) part += left[k * a_inner] * right[k * b_inner];
            sum += part;
        }
        put(out, i, sum, add);
    }
}

// y = relu(w ⋆ x + b), 3×3, without padding: x [images, ins, height, width], w [outs, ins, 3, 3], b [outs] →
// y [images, outs, height − 2, width − 2]. Images that are not live give 0.
KERNEL __launch_bounds__(256) naive_conv_fwd(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                             const REAL* __restrict__ live, REAL* __restrict__ y, int images, int ins, int outs,
                                             int height, int width) {
    int rows = height - 2, columns = width - 2;
    long long n = (long long)images * outs * rows * columns;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int column = (int)(i % columns), row = (int)(i / columns % rows), o = (int)(i / columns / rows % outs);
        long long image = i / columns / rows / outs;
        if (live && live[image] == (REAL)0) {
            y[i] = 0;
            continue;
        }
        REAL sum = b[o];
        for (int c = 0; c < ins; c++) {
            const REAL *plane = x + (image * ins + c) * height * width, *taps = w + (o * ins + c) * 9;
            for (int tap = 0; tap < 9; tap++) sum += taps[tap] * plane[(row + tap / 3) * width + column + tap % 3];
        }
        y[i] = larger(sum, (REAL)0);
    }
}

// The gradient with respect to x: a pixel collects from the results that it contributed to. Where y is 0 nothing goes back.
KERNEL __launch_bounds__(256) naive_conv_bwd_input(const REAL* __restrict__ w, const REAL* __restrict__ y, const REAL* __restrict__ dy,
                                                   REAL* __restrict__ dx, int add_dx, int images, int ins, int outs, int height,
                                                   int width) {
    int rows = height - 2, columns = width - 2;
    long long n = (long long)images * ins * height * width;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int column = (int)(i % width), row = (int)(i / width % height), c = (int)(i / width / height % ins);
        long long image = i / width / height / ins;
        REAL sum = 0;
        for (int o = 0; o < outs; o++) {
            long long plane = (image * outs + o) * rows * columns;
            for (int tap = 0; tap < 9; tap++) {
                int to_row = row - tap / 3, to_column = column - tap % 3;
                if (to_row < 0 || to_row >= rows || to_column < 0 || to_column >= columns) continue;
                long long at = plane + to_row * columns + to_column;
                if (y[at] > (REAL)0) sum += w[(o * ins + c) * 9 + tap] * dy[at];
            }
        }
        put(dx, i, sum, add_dx);
    }
}

// The gradient with respect to w: sums over all images, each row of which is added up on its own.
KERNEL __launch_bounds__(256) naive_conv_bwd_weights(const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ dy,
                                                     REAL* __restrict__ dw, int add_dw, int images, int ins, int outs, int height,
                                                     int width) {
    int rows = height - 2, columns = width - 2;
    for (long long i = first_element(); i < (long long)outs * ins * 9; i += element_stride()) {
        int o = (int)(i / 9 / ins), c = (int)(i / 9 % ins), tap = (int)(i % 9);
        REAL sum = 0;
        for (long long image = 0; image < images; image++) {
            for (int row = 0; row < rows; row++) {
                long long at = ((image * outs + o) * rows + row) * columns;
                const REAL* from = x + ((image * ins + c) * height + row + tap / 3) * width + tap % 3;
                REAL part = 0;
                for (int column = 0; column < columns; column++) {
                    if (y[at + column] > (REAL)0) part += dy[at + column] * from[column];
                }
                sum += part;
            }
        }
        put(dw, i, sum, add_dw);
    }
}

// The gradient with respect to b, likewise: y [images, outs, rows, columns].
KERNEL __launch_bounds__(256) naive_conv_bwd_bias(const REAL* __restrict__ y, const REAL* __restrict__ dy, REAL* __restrict__ db,
                                                  int add_db, int images, int outs, int rows, int columns) {
    for (long long o = first_element(); o < outs; o += element_stride()) {
        REAL sum = 0;
        for (long long image = 0; image < images; image++) {
            for (int row = 0; row < rows; row++) {
                long long at = ((image * outs + o) * rows + row) * columns;
                REAL part = 0;
                for (int column = 0; column < columns; column++) {
                    if (y[at + column] > (REAL)0) part += dy[at + column];
                }
                sum += part;
            }
        }
        put(db, o, sum, add_db);
    }
}

// Mean and variance of the channels of x [n, c, r], and the sums that their gradients need, one thread per channel (batch_norm.cu). As in
// a product, every 64 numbers are added up before they join the sum.
#define OF_CHANNEL(sum, term)                                                             \
    for (int from = 0; from < n * r; from += 64) {                                        \
        REAL part = 0;                                                                    \
        for (int i = from; i < from + 64 && i < n * r; i++) {                             \
            long long at = ((long long)(i / r) * c + channel) * r + i % r;                \
            part += term;                                                                 \
        }                                                                                 \
        sum += part;                                                                      \
    }

KERNEL __launch_bounds__(256) naive_batch_norm_mean(const REAL* __restrict__ x, REAL* __restrict__ mean, int n, int c, int r) {
    for (long long channel = first_element(); channel < c; channel += element_stride()) {
        REAL sum = 0;
        OF_CHANNEL(sum, x[at])
        mean[channel] = sum / ((REAL)n * (REAL)r);
    }
}

KERNEL __launch_bounds__(256) naive_batch_norm_variance(const REAL* __restrict__ x, const REAL* __restrict__ mean,
                                                        REAL* __restrict__ variance, int n, int c, int r) {
    for (long long channel = first_element(); channel < c; channel += element_stride()) {
        REAL middle = mean[channel], sum = 0;
        OF_CHANNEL(sum, (x[at] - middle) * (x[at] - middle))
        variance[channel] = sum / ((REAL)n * (REAL)r);
    }
}

KERNEL __launch_bounds__(256) naive_batch_norm_sums(const REAL* __restrict__ x, const REAL* __restrict__ mean,
                                                    const REAL* __restrict__ variance, const REAL* __restrict__ dy,
                                                    REAL* __restrict__ sums, REAL* __restrict__ dw, int add_dw, REAL* __restrict__ db,
                                                    int add_db, int n, int c, int r, REAL eps) {
    for (long long channel = first_element(); channel < c; channel += element_stride()) {
        REAL middle = mean[channel], by = (REAL)1 / sqrt(variance[channel] + eps), of_w = 0, of_b = 0;
        OF_CHANNEL(of_w, dy[at] * (x[at] - middle) * by)
        OF_CHANNEL(of_b, dy[at])
        sums[channel] = of_w;
        sums[c + channel] = of_b;
        if (dw) put(dw, channel, of_w, add_dw);
        if (db) put(db, channel, of_b, add_db);
    }
}
