// The pen's on/off decision.

__device__ __forceinline__ REAL limited(REAL x, REAL low, REAL high) { return x < low ? low : x > high ? high : x; }

// y = p·previous, limited to [low, high].
KERNEL __launch_bounds__(256) onoff_probability_fwd(
    const REAL* __restrict__ p, const REAL* __restrict__ previous, REAL* __restrict__ y, int n, REAL low, REAL high) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = limited(p[i] * previous[i], low, high);
}

// No gradient where the limits act.
KERNEL __launch_bounds__(256) onoff_probability_bwd(
    const REAL* __restrict__ p, const REAL* __restrict__ previous, const REAL* __restrict__ dy, REAL* __restrict__ dp, int add_dp,
    int n, REAL low, REAL high) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL x = p[i] * previous[i];
        put(dp, i, x >= low && x <= high ? dy[i] * previous[i] : (REAL)0, add_dp);
    }
}

// y = (o·log p + (1 - o)·log(1 - p))·mask with p limited to [low, high].
KERNEL __launch_bounds__(256) bernoulli_fwd(
    const REAL* __restrict__ p, const REAL* __restrict__ value, const REAL* __restrict__ mask, REAL* __restrict__ y, int n, REAL low,
    REAL high) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL x = limited(p[i], low, high), o = value[i];
        y[i] = (o * log(x) + ((REAL)1 - o) * log1p(-x)) * mask[i];
    }
}

KERNEL __launch_bounds__(256) bernoulli_bwd(
    const REAL* __restrict__ p, const REAL* __restrict__ value, const REAL* __restrict__ mask, const REAL* __restrict__ dy,
    REAL* __restrict__ dp, int add_dp, int n, REAL low, REAL high) {
#pragma unroll 1
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL x = p[i], o = value[i];
        REAL slope = o / x - ((REAL)1 - o) / ((REAL)1 - x);
        put(dp, i, x >= low && x <= high ? dy[i] * mask[i] * slope : (REAL)0, add_dp);
    }
}

KERNEL __launch_bounds__(256) sample_onoff(
    const REAL* __restrict__ p, const REAL* __restrict__ uniform, const REAL* __restrict__ previous, REAL* __restrict__ y, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = uniform[i] < p[i] ? previous[i] : (REAL)0;
}
