// Dropout as one bit per element: [calls·rows, words] with 32 columns in a word, all 0 in rows that are not live. A launch draws them
// for up to four calls of one rate.

// What a call keeps; numbers as in src/ops/dropout.rs.
enum Kind { ALL = 0, GIVEN = 1, HALF = 2, RANDOM = 3 };

struct Choice {
    const REAL* mask;
    int kind;
    u64 seed, step;
    unsigned stream, least;  // of a random word that keeps its element
    int first;               // the row of the batch that is row 0 here

    __device__ __forceinline__ unsigned word(int row, int word, int columns) const {
        unsigned bits = 0;
        if (kind == ALL) return ALL_LANES;
        if (kind == HALF) {
            uint4 r = philox(seed, step, stream, (first + row) * ((columns + 127) / 128) + word / 4);
            return of_call(word % 4, r.x, r.y, r.z, r.w);
        }
        for (int i = 0; i < 32 && word * 32 + i < columns; i += 4) {
            int column = word * 32 + i;
            if (kind == GIVEN) {
                const REAL* from = mask + (long long)row * columns + column;
                for (int j = 0; j < 4 && column + j < columns; j++) bits |= (from[j] != (REAL)0 ? 1u : 0u) << (i + j);
            } else {
                uint4 r = philox(seed, step, stream, (first + row) * ((columns + 3) / 4) + column / 4);
                bits |= ((r.x >= least ? 1u : 0u) | (r.y >= least ? 2u : 0u) | (r.z >= least ? 4u : 0u) | (r.w >= least ? 8u : 0u)) << i;
            }
        }
        return bits;
    }
};

KERNEL __launch_bounds__(256)
dropout_bits(const REAL* __restrict__ mask0, int kind0, u64 seed0, u64 step0, unsigned stream0, unsigned least0,
                    const REAL* __restrict__ mask1, int kind1, u64 seed1, u64 step1, unsigned stream1, unsigned least1,
                    const REAL* __restrict__ mask2, int kind2, u64 seed2, u64 step2, unsigned stream2, unsigned least2,
                    const REAL* __restrict__ mask3, int kind3, u64 seed3, u64 step3, unsigned stream3, unsigned least3,
                    const unsigned* __restrict__ clock, const REAL* __restrict__ live, unsigned* __restrict__ bits, int images,
                    int columns, int first) {
    int call = blockIdx.y, words = (columns + 31) / 32;
    Choice choice{of_call(call, mask0, mask1, mask2, mask3),
                  of_call(call, kind0, kind1, kind2, kind3),
                  of_call(call, seed0, seed1, seed2, seed3),
                  clock_step(of_call(call, step0, step1, step2, step3), clock),
                  of_call(call, stream0, stream1, stream2, stream3),
                  of_call(call, least0, least1, least2, least3),
                  first};
    long long n = (long long)images * words;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)(i / words), word = (int)(i % words);
        bits[call * n + i] = live && live[row] == (REAL)0 ? 0 : choice.word(row, word, columns);
    }
}

// Dropout by the bits of dropout_bits, 32 columns to a word: out = x·scale where they are 1, else 0. So it is its own backward.
KERNEL __launch_bounds__(256) dropout(const REAL* __restrict__ x, const unsigned* __restrict__ bits, REAL* __restrict__ out, int add,
                                      int rows, int columns, REAL scale) {
    int words = (columns + 31) / 32;
    long long n = (long long)rows * columns;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int column = (int)(i % columns);
        bool kept = bits[i / columns * words + column / 32] >> column % 32 & 1;
        put(out, i, kept ? x[i] * scale : (REAL)0, add);
    }
}
