// Rows of d numbers brought to mean 0 and variance 1, one block per row: z = (x - mean)·by with by = 1/sqrt(variance + eps), y = w·z + b.
KERNEL __launch_bounds__(256) layer_norm_fwd(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                             REAL* __restrict__ y, REAL* __restrict__ z, REAL* __restrict__ by, int d, REAL eps) {
    long long first = (long long)blockIdx.x * d;
    REAL mean = 0, variance = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) mean += x[first + i];
    mean = block_sum(mean) / d;
    for (int i = threadIdx.x; i < d; i += blockDim.x) variance += (x[first + i] - mean) * (x[first + i] - mean);
    variance = block_sum(variance) / d;
    REAL scale = (REAL)1 / sqrt(variance + eps);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        REAL normal = (x[first + i] - mean) * scale;
        z[first + i] = normal;
        y[first + i] = w[i] * normal + b[i];
    }
    if (threadIdx.x == 0) by[blockIdx.x] = scale;
}

KERNEL __launch_bounds__(256) layer_norm_bwd(const REAL* __restrict__ w, const REAL* __restrict__ z, const REAL* __restrict__ by,
                                             const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int d) {
    long long first = (long long)blockIdx.x * d;
    REAL mean = 0, along = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        REAL g = dy[first + i] * w[i];
        mean += g;
        along += g * z[first + i];
    }
    mean = block_sum(mean) / d;
    along = block_sum(along) / d;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        put(dx, first + i, (dy[first + i] * w[i] - mean - z[first + i] * along) * by[blockIdx.x], add_dx);
}

// One block per column, over all n rows.
KERNEL __launch_bounds__(256) layer_norm_bwd_weights(const REAL* __restrict__ z, const REAL* __restrict__ dy, REAL* __restrict__ dw,
                                                     int add_dw, REAL* __restrict__ db, int add_db, int n, int d) {
    REAL of_w = 0, of_b = 0;
    for (long long row = threadIdx.x; row < n; row += blockDim.x) {
        REAL g = dy[row * d + blockIdx.x];
        of_w += g * z[row * d + blockIdx.x];
        of_b += g;
    }
    of_w = block_sum(of_w);
    of_b = block_sum(of_b);
    if (threadIdx.x > 0) return;
    if (dw) put(dw, blockIdx.x, of_w, add_dw);
    if (db) put(db, blockIdx.x, of_b, add_db);
}
