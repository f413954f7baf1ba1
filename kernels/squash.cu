// Raw outputs put into their ranges. `columns` [3, width] holds for each column which function it is, `lo` and `span`:
// 0: a, 1: lo + span·sigmoid(a), 2: lo + softplus(a), 3: tanh(a).

__device__ __forceinline__ REAL squashed(REAL a, int kind, REAL lo, REAL span) {
    return kind == 0 ? a : kind == 1 ? lo + span * sigmoid(a) : kind == 2 ? lo + softplus(a) : tanh(a);
}

__device__ __forceinline__ REAL squashed_slope(REAL a, int kind, REAL span) {
    if (kind == 0) return 1;
    if (kind == 1) return span * sigmoid_slope(a);
    if (kind == 2) return sigmoid(a);
    REAL y = tanh(a);
    return (REAL)1 - y * y;
}

KERNEL __launch_bounds__(256) squash_fwd(
    const REAL* __restrict__ a, const REAL* __restrict__ columns, REAL* __restrict__ y, int n, int width) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        int c = (int)(i % width);
        y[i] = squashed(a[i], (int)columns[c], columns[width + c], columns[2 * width + c]);
    }
}

KERNEL __launch_bounds__(256) squash_bwd(
    const REAL* __restrict__ a, const REAL* __restrict__ columns, const REAL* __restrict__ dy, REAL* __restrict__ da, int add_da,
    int n, int width) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        int c = (int)(i % width);
        put(da, i, dy[i] * squashed_slope(a[i], (int)columns[c], columns[2 * width + c]), add_da);
    }
}

// One range for all elements, rounded only once: a probability close to 1 has few digits left in 1 - p. The bounds come as the bits
// of double-precision numbers.
KERNEL __launch_bounds__(256) squash_one_fwd(const REAL* __restrict__ a, REAL* __restrict__ y, int n, u64 lo_bits, u64 span_bits) {
    double lo = __longlong_as_double((long long)lo_bits), span = __longlong_as_double((long long)span_bits);
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = (REAL)(lo + span / (1.0 + exp(-(double)a[i])));
}
