// Channels brought to mean 0 and variance 1: x [n, c, r] with c channels of r numbers. z = (x - mean)/sqrt(variance + eps), y = w·z + b.

// Where element i of a channel is.
__device__ __forceinline__ long long of_channel(int i, int channel, int c, int r) { return ((long long)(i / r) * c + channel) * r + i % r; }

// One block per channel.
KERNEL __launch_bounds__(1024) batch_norm_moments(const REAL* __restrict__ x, REAL* __restrict__ mean, REAL* __restrict__ variance, int n,
                                                  int c, int r) {
    int count = n * r;
    REAL sum = 0, squares = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += x[of_channel(i, blockIdx.x, c, r)];
    REAL middle = block_sum(sum) / count;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        REAL off = x[of_channel(i, blockIdx.x, c, r)] - middle;
        squares += off * off;
    }
    squares = block_sum(squares);
    if (threadIdx.x > 0) return;
    mean[blockIdx.x] = middle;
    variance[blockIdx.x] = squares / count;
}

KERNEL __launch_bounds__(256) batch_norm_fwd(const REAL* __restrict__ x, const REAL* __restrict__ mean, const REAL* __restrict__ variance,
                                             const REAL* __restrict__ w, const REAL* __restrict__ b, REAL* __restrict__ y, int elements,
                                             int c, int r, REAL eps) {
    for (long long i = first_element(); i < elements; i += element_stride()) {
        int channel = (int)(i / r % c);
        y[i] = (x[i] - mean[channel]) * (w[channel] / sqrt(variance[channel] + eps)) + b[channel];
    }
}

// One block per channel: the sums of dy·z and of dy, to `sums` [2, c] and to the gradients of w and b.
KERNEL __launch_bounds__(1024) batch_norm_sums(const REAL* __restrict__ x, const REAL* __restrict__ mean,
                                               const REAL* __restrict__ variance, const REAL* __restrict__ dy, REAL* __restrict__ sums,
                                               REAL* __restrict__ dw, int add_dw, REAL* __restrict__ db, int add_db, int n, int c, int r,
                                               REAL eps) {
    REAL middle = mean[blockIdx.x], by = (REAL)1 / sqrt(variance[blockIdx.x] + eps), of_w = 0, of_b = 0;
    for (int i = threadIdx.x; i < n * r; i += blockDim.x) {
        long long at = of_channel(i, blockIdx.x, c, r);
        of_w += dy[at] * (x[at] - middle) * by;
        of_b += dy[at];
    }
    of_w = block_sum(of_w);
    of_b = block_sum(of_b);
    if (threadIdx.x > 0) return;
    sums[blockIdx.x] = of_w;
    sums[c + blockIdx.x] = of_b;
    if (dw) put(dw, blockIdx.x, of_w, add_dw);
    if (db) put(db, blockIdx.x, of_b, add_db);
}

// Without `sums` mean and variance do not depend on x.
KERNEL __launch_bounds__(256) batch_norm_bwd(const REAL* __restrict__ x, const REAL* __restrict__ mean, const REAL* __restrict__ variance,
                                             const REAL* __restrict__ w, const REAL* __restrict__ sums, const REAL* __restrict__ dy,
                                             REAL* __restrict__ dx, int add_dx, int elements, int n, int c, int r, REAL eps) {
    REAL count = (REAL)n * (REAL)r;
    for (long long i = first_element(); i < elements; i += element_stride()) {
        int channel = (int)(i / r % c);
        REAL by = (REAL)1 / sqrt(variance[channel] + eps), g = dy[i];
        if (sums) g -= (sums[c + channel] + (x[i] - mean[channel]) * by * sums[channel]) / count;
        put(dx, i, w[channel] * by * g, add_dx);
    }
}
