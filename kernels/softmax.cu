// Probabilities of classes, their logarithms, and the cross-entropy: one block per row of `classes` scores.

// log Σ e^(x - largest) of a row, in every thread, and its largest score.
__device__ REAL log_sum(const REAL* x, int classes, REAL* largest) {
    REAL most = x[0], sum = 0;
    for (int c = threadIdx.x; c < classes; c += blockDim.x) most = larger(x[c], most);
    most = block_max(most);
    for (int c = threadIdx.x; c < classes; c += blockDim.x) sum += exp(x[c] - most);
    *largest = most;
    return log(block_sum(sum));
}

KERNEL __launch_bounds__(256) softmax_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int classes, int log_) {
    long long first = (long long)blockIdx.x * classes;
    REAL largest, all = log_sum(x + first, classes, &largest);
    for (int c = threadIdx.x; c < classes; c += blockDim.x) {
        REAL log_y = x[first + c] - largest - all;
        y[first + c] = log_ ? log_y : exp(log_y);
    }
}

KERNEL __launch_bounds__(256) softmax_bwd(const REAL* __restrict__ y, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx,
                                          int classes, int log_) {
    long long first = (long long)blockIdx.x * classes;
    REAL sum = 0;
    for (int c = threadIdx.x; c < classes; c += blockDim.x) sum += log_ ? dy[first + c] : dy[first + c] * y[first + c];
    sum = block_sum(sum);
    for (int c = threadIdx.x; c < classes; c += blockDim.x) {
        long long i = first + c;
        put(dx, i, log_ ? dy[i] - exp(y[i]) * sum : y[i] * (dy[i] - sum), add_dx);
    }
}

// y [rows] = -log softmax(x)[label], and the logarithms of all probabilities.
KERNEL __launch_bounds__(256) cross_entropy_fwd(const REAL* __restrict__ x, const REAL* __restrict__ labels, REAL* __restrict__ y,
                                                REAL* __restrict__ logs, int classes) {
    long long first = (long long)blockIdx.x * classes;
    REAL largest, all = log_sum(x + first, classes, &largest), label = labels[blockIdx.x];
    for (int c = threadIdx.x; c < classes; c += blockDim.x) {
        REAL log_y = x[first + c] - largest - all;
        logs[first + c] = log_y;
        if ((REAL)c == label) y[blockIdx.x] = -log_y;
    }
    // A label that is no class.
    if (threadIdx.x == 0 && !(label >= 0 && label < (REAL)classes && label == floor(label))) y[blockIdx.x] = log((REAL)-1);
}

KERNEL __launch_bounds__(256) cross_entropy_bwd(const REAL* __restrict__ labels, const REAL* __restrict__ logs,
                                                const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int classes) {
    long long first = (long long)blockIdx.x * classes;
    REAL label = labels[blockIdx.x], scale = dy[blockIdx.x];
    for (int c = threadIdx.x; c < classes; c += blockDim.x)
        put(dx, first + c, (exp(logs[first + c]) - ((REAL)c == label ? (REAL)1 : (REAL)0)) * scale, add_dx);
}
