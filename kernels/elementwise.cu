// Elementwise sums and products, and sums over groups of neighbours.

// y = a·x + b·z
KERNEL __launch_bounds__(256) combine_fwd(const REAL* __restrict__ x, const REAL* __restrict__ z, REAL* __restrict__ y, int n, REAL a, REAL b) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = a * x[i] + b * z[i];
}

// The gradients of both operands, either of which may be null.
KERNEL __launch_bounds__(256) combine_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ dz, int add_dz, int n, REAL a, REAL b) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL g = dy[i];
        if (dx) put(dx, i, a * g, add_dx);
        if (dz) put(dz, i, b * g, add_dz);
    }
}

KERNEL __launch_bounds__(256) mul_fwd(const REAL* __restrict__ x, const REAL* __restrict__ z, REAL* __restrict__ y, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = x[i] * z[i];
}

KERNEL __launch_bounds__(256) mul_bwd(const REAL* __restrict__ x, const REAL* __restrict__ z, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ dz, int add_dz, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL g = dy[i];
        if (dx) put(dx, i, z[i] * g, add_dx);
        if (dz) put(dz, i, x[i] * g, add_dz);
    }
}

// y = factor·x + offset
KERNEL __launch_bounds__(256) scale_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, REAL factor, REAL offset) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = factor * x[i] + offset;
}

KERNEL __launch_bounds__(256) scale_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, REAL factor) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, factor * dy[i], add_dx);
}

// y = log(1 + e^x)
KERNEL __launch_bounds__(256) softplus_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = larger(x[i], (REAL)0) + log1p(exp(-fabs(x[i])));
}

KERNEL __launch_bounds__(256) softplus_bwd(const REAL* __restrict__ x, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, dy[i] * sigmoid(x[i]), add_dx);
}

// y[g] = the sum of elements g·group .. (g + 1)·group, one block each.
KERNEL __launch_bounds__(1024) sum_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int group) {
    x += (long long)blockIdx.x * group;
    REAL sum = 0;
    for (long long i = threadIdx.x; i < group; i += blockDim.x) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

KERNEL __launch_bounds__(256) sum_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int group) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, dy[i / group], add_dx);
}
