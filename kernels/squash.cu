// Raw outputs put into their ranges. Which column has which range comes by value, as up to 4 segments: a segment ends before column
// `end` and repeats a pattern, a word whose lowest 4 bits are its period and whose next 4-bit digits are the ranges of its columns:
// numbers of (lo, span) pairs, or FREE. A launch treats columns first .. first + width of rows of `total`.

#define FREE 15u
#define RANGES 8

struct Squash {
    REAL lo[RANGES], span[RANGES];
    int end[4];
    unsigned pattern[4];

    // The range of column c: its digit.
    __device__ unsigned range(int c) const {
        int start = 0;
#pragma unroll
        for (int s = 0; s < 4; s++) {
            if (c < end[s]) return pattern[s] >> (4 + 4 * ((c - start) % (int)(pattern[s] & 15u))) & 15u;
            start = end[s];
        }
        return FREE;
    }
    // What becomes of the raw output a of column c, and the derivative of that.
    __device__ REAL value(int c, REAL a) const {
        unsigned r = range(c);
        return r == FREE ? a : pick(lo, r) + pick(span, r) * sigmoid(a);
    }
    __device__ REAL slope(int c, REAL a) const {
        unsigned r = range(c);
        return r == FREE ? (REAL)1 : pick(span, r) * sigmoid_slope(a);
    }

    // of[range] without an index that is known at run time only, which would move the table out of the registers.
    __device__ static REAL pick(const REAL* of, unsigned range) {
        REAL x = of[0];
#pragma unroll
        for (unsigned r = 1; r < RANGES; r++)
            if (r == range) x = of[r];
        return x;
    }
};

KERNEL __launch_bounds__(256) squash_fwd(
    const REAL* __restrict__ a, REAL* __restrict__ y, int n, int first, int width, int total, int end0, int end1, int end2, int end3,
    unsigned pattern0, unsigned pattern1, unsigned pattern2, unsigned pattern3, REAL lo0, REAL lo1, REAL lo2, REAL lo3, REAL lo4,
    REAL lo5, REAL lo6, REAL lo7, REAL span0, REAL span1, REAL span2, REAL span3, REAL span4, REAL span5, REAL span6, REAL span7) {
    Squash squash = {{lo0, lo1, lo2, lo3, lo4, lo5, lo6, lo7},
                     {span0, span1, span2, span3, span4, span5, span6, span7},
                     {end0, end1, end2, end3},
                     {pattern0, pattern1, pattern2, pattern3}};
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / width, c = (int)i % width;
        long long at = (long long)row * total + first + c;
        y[at] = squash.value(c, a[at]);
    }
}

KERNEL __launch_bounds__(256) squash_bwd(
    const REAL* __restrict__ a, const REAL* __restrict__ dy, REAL* __restrict__ da, int add_da, int n, int first, int width,
    int total, int end0, int end1, int end2, int end3, unsigned pattern0, unsigned pattern1, unsigned pattern2, unsigned pattern3,
    REAL lo0, REAL lo1, REAL lo2, REAL lo3, REAL lo4, REAL lo5, REAL lo6, REAL lo7, REAL span0, REAL span1, REAL span2, REAL span3,
    REAL span4, REAL span5, REAL span6, REAL span7) {
    Squash squash = {{lo0, lo1, lo2, lo3, lo4, lo5, lo6, lo7},
                     {span0, span1, span2, span3, span4, span5, span6, span7},
                     {end0, end1, end2, end3},
                     {pattern0, pattern1, pattern2, pattern3}};
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / width, c = (int)i % width;
        long long at = (long long)row * total + first + c;
        put(da, at, dy[at] * squash.slope(c, a[at]), add_da);
    }
}

// One range for all elements, rounded only once: a probability close to 1 has few digits left in 1 - p. The bounds come as the bits
// of double-precision numbers.
KERNEL __launch_bounds__(256) squash_one_fwd(const REAL* __restrict__ a, REAL* __restrict__ y, int n, u64 lo_bits, u64 span_bits) {
    double lo = __longlong_as_double((long long)lo_bits), span = __longlong_as_double((long long)span_bits);
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = (REAL)(lo + span / (1.0 + exp(-(double)a[i])));
}
