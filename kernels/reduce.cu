// Sums and maxima over the middle of x [outer, count, inner], with group = count·inner: one block per result, [outer, inner] of them.

// Which of x belong to the result of this block: from the first on, every `inner`-th of the group.
__device__ __forceinline__ const REAL* first_of(const REAL* x, int group, int inner) {
    return x + (long long)(blockIdx.x / inner) * group + blockIdx.x % inner;
}

// To which result an element belongs.
__device__ __forceinline__ long long result_of(long long i, int group, int inner) { return i / group * inner + i % inner; }

KERNEL __launch_bounds__(1024) sum_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int group, int inner) {
    const REAL* from = first_of(x, group, inner);
    REAL sum = 0;
    for (long long i = (long long)threadIdx.x * inner; i < group; i += (long long)blockDim.x * inner) sum += from[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

KERNEL __launch_bounds__(256) sum_bwd(const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int group, int inner) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, dy[result_of(i, group, inner)], add_dx);
}

// ties: how many elements are as large.
KERNEL __launch_bounds__(1024) max_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, REAL* __restrict__ ties, int group, int inner) {
    const REAL* from = first_of(x, group, inner);
    REAL most = from[0], count = 0;
    for (long long i = (long long)threadIdx.x * inner; i < group; i += (long long)blockDim.x * inner) most = larger(from[i], most);
    most = block_max(most);
    for (long long i = (long long)threadIdx.x * inner; i < group; i += (long long)blockDim.x * inner) count += from[i] == most;
    count = block_sum(count);
    if (threadIdx.x == 0) {
        y[blockIdx.x] = most;
        ties[blockIdx.x] = count;
    }
}

KERNEL __launch_bounds__(256) max_bwd(const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ ties,
                                      const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, int n, int group, int inner) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long j = result_of(i, group, inner);
        put(dx, i, x[i] == y[j] ? dy[j] / ties[j] : (REAL)0, add_dx);
    }
}
