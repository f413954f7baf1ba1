// What the kernels of conv_pair.cu are made of: tiles in shared memory, and products of them with and without tensor cores.

// Floats from one row to the next in shared memory. Several channels lie as [rows][channels][ROW]: the distances are known to the
// compiler, and neighbouring channels begin in different memory banks.
template <bool TENSOR> constexpr int ROW = TENSOR ? TENSOR_ROW : PLAIN_ROW;
// Packed weights have OUT_STEP or IN_STEP from one tap to the next. For tensor cores they lie as in w₂ itself: distance from one second
// channel to the next in the forward, where 72 would make lanes meet in a bank, and in the backward, where it does not.
#define W2_FORWARD 76
#define W2_BACKWARD 72
// Tensor cores are for floats, which also fit twice on a multiprocessor.
constexpr bool FLOAT = sizeof(REAL) == 4;
#define RESIDENT (FLOAT ? 2 : 1)

struct alignas(16) Four {
    REAL at[4];
};
struct alignas(2 * sizeof(REAL)) Two {
    REAL at[2];
};

__device__ __forceinline__ Four four(const REAL* p) { return *(const Four*)p; }

// Six neighbours; p is aligned to four.
__device__ __forceinline__ void six(REAL v[6], const REAL* p) {
    Four low = four(p);
    Two high = *(const Two*)(p + 4);
    v[0] = low.at[0], v[1] = low.at[1], v[2] = low.at[2], v[3] = low.at[3], v[4] = high.at[0], v[5] = high.at[1];
}

// Six neighbours; p + 2 is aligned to four.
__device__ __forceinline__ void six_before(REAL v[6], const REAL* p) {
    Two low = *(const Two*)p;
    Four high = four(p + 2);
    v[0] = low.at[0], v[1] = low.at[1], v[2] = high.at[0], v[3] = high.at[1], v[4] = high.at[2], v[5] = high.at[3];
}

__device__ __forceinline__ int pieces_of(int n, int size) { return (n + size - 1) / size; }
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ bool within(int i, int n) { return (unsigned)i < (unsigned)n; }

// For every row and column: a warp takes a row, its lanes the columns.
template <class Visit> __device__ __forceinline__ void each(int rows, int columns, Visit visit) {
#pragma unroll 1
    for (int row = threadIdx.x / WARP; row < rows; row += blockDim.x / WARP) {
#pragma unroll 1
        for (int column = threadIdx.x % WARP; column < columns; column += WARP) visit(row, column);
    }
}

// What all parts need to know.
struct Sizes {
    int h, w, c1, c2;
    __device__ int rows1() const { return h - 2; }
    __device__ int columns1() const { return w - 2; }
    __device__ int rows2() const { return h - 4; }
    __device__ int columns2() const { return w - 4; }
    __device__ long long pixels() const { return (long long)h * w; }
    __device__ long long features() const { return (long long)c2 * rows2() * columns2(); }
};

// A number as it is kept in shared memory to be multiplied.
template <bool TENSOR> __device__ __forceinline__ REAL stored(REAL x) {
    return TENSOR ? __uint_as_float(to_tf32(x)) : x;
}

// A window of an image with zeros around it.
__device__ __forceinline__ void load_image(const Sizes& s, const REAL* image, int top, int left, REAL* out, int rows, int columns) {
    each(rows, columns, [&](int r, int c) {
        bool inside = within(top + r, s.h) && within(left + c, s.w);
        out[r * X_ROW + c] = inside ? image[(top + r) * s.w + left + c] : (REAL)0;
    });
}

// A window of CHANNELS channels of z₂ with zeros around it, and in channels beyond the last; eight at a time, so that many loads are
// under way at once.
template <bool TENSOR, int CHANNELS>
__device__ __forceinline__ void load_z2(const Sizes& s, const REAL* y, const REAL* dy, int from, int top, int left, REAL* out,
                                        int rows, int columns) {
    int area = s.rows2() * s.columns2();
    each(rows, columns, [&](int r, int c) {
        bool inside = within(top + r, s.rows2()) && within(left + c, s.columns2());
        int channels = inside ? s.c2 - from : 0, first = inside ? from * area + (top + r) * s.columns2() + left + c : 0;
#pragma unroll 1
        for (int p = 0; p < CHANNELS; p += 8) {
            REAL value[8], slope[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                bool there = p + k < channels;
                value[k] = there ? y[first + (p + k) * area] : (REAL)0;
                slope[k] = there ? dy[first + (p + k) * area] : (REAL)0;
            }
#pragma unroll
            for (int k = 0; k < 8; k++) {
                out[(r * CHANNELS + p + k) * ROW<TENSOR> + c] = stored<TENSOR>(value[k] > (REAL)0 ? slope[k] : (REAL)0);
            }
        }
    });
}

// w₁ as [9][INS], then b₁; zeros beyond the last channel.
#define FIRST_WEIGHTS (10 * INS)
__device__ __forceinline__ void pack_first(const Sizes& s, const REAL* w1, const REAL* b1, int from, REAL* out) {
    for (int i = threadIdx.x; i < FIRST_WEIGHTS; i += blockDim.x) {
        int tap = i / INS, c = from + i % INS;
        out[i] = c >= s.c1 ? (REAL)0 : tap < 9 ? w1[c * 9 + tap] : b1[c];
    }
}

// w₁⋆x + b₁ of four channels on one strip, whose window of x begins at `x`.
__device__ __forceinline__ void first_sums(const REAL* x, const REAL* weights, REAL sum[4][STRIP]) {
    Four bias = four(weights + 9 * INS);
    for (int p = 0; p < 4; p++)
        for (int l = 0; l < STRIP; l++) sum[p][l] = bias.at[p];
#pragma unroll
    for (int dy = 0; dy < 3; dy++) {
        REAL v[6];
        six(v, x + dy * X_ROW);
#pragma unroll
        for (int dx = 0; dx < 3; dx++) {
            Four k = four(weights + (dy * 3 + dx) * INS);
            for (int p = 0; p < 4; p++)
                for (int l = 0; l < STRIP; l++) sum[p][l] += v[dx + l] * k.at[p];
        }
    }
}

// a = relu(w₁⋆x + b₁) for INS channels.
template <bool TENSOR>
__device__ __forceinline__ void first_layer(const REAL* x, const REAL* weights, REAL* a, int rows, int strips) {
    int places = rows * strips;
    for (int job = threadIdx.x; job < 2 * places; job += blockDim.x) {
        int half = job >= places, place = job - half * places, row = place / strips, at = (place - row * strips) * STRIP;
        REAL sum[4][STRIP];
        first_sums(x + row * X_ROW + at, weights + 4 * half, sum);
        for (int p = 0; p < 4; p++) {
            Four out;
            for (int l = 0; l < STRIP; l++) out.at[l] = stored<TENSOR>(larger(sum[p][l], 0));
            *(Four*)(a + (row * INS + 4 * half + p) * ROW<TENSOR> + at) = out;
        }
    }
}

// sum += weights ⋆ the first `channels` of eight planes, for eight channels on one strip. The weights lie as [channels][9][STEP].
template <int STEP>
__device__ __forceinline__ void convolve(const REAL* planes, int channels, const REAL* weights, REAL sum[8][STRIP]) {
#pragma unroll 1
    for (int c = 0; c < channels; c++) {
#pragma unroll
        for (int dy = 0; dy < 3; dy++) {
            REAL v[6];
            six(v, planes + (dy * 8 + c) * ROW<false>);
#pragma unroll
            for (int dx = 0; dx < 3; dx++) {
                const REAL* k = weights + (c * 9 + dy * 3 + dx) * STEP;
                Four low = four(k), high = four(k + 4);
#pragma unroll
                for (int p = 0; p < 4; p++)
                    for (int l = 0; l < STRIP; l++) {
                        sum[p][l] += v[dx + l] * low.at[p];
                        sum[4 + p][l] += v[dx + l] * high.at[p];
                    }
            }
        }
    }
}

// ---- Tensor cores -------------------------------------------------------------------------------------------------------
// With g = lane/4 and t = lane%4, as in common.cuh. What a product's fragments take for its rows or inner elements is up to us: here
// a lane's are always neighbouring pixels, so that four of them, read at once, serve the three taps of a row.

// Four neighbours; p is aligned to two.
__device__ __forceinline__ void four_from_two(REAL v[4], const REAL* p) {
    Two low = *(const Two*)p, high = *(const Two*)(p + 2);
    v[0] = low.at[0], v[1] = low.at[1], v[2] = high.at[0], v[3] = high.at[1];
}

// sum += weights ⋆ eight planes, for 16 columns of `rows` rows (at most 8/N) and 8·N channels by one warp: see each_pair. Rows g and
// g + 8 of a product are columns 2g and 2g + 1. FROM and TO are the distances from one channel of the planes and of the sums to the
// next among the weights, which stay in registers.
template <int N, int FROM, int TO, bool MIRRORED, class Float>
__device__ __forceinline__ void convolve_tensor(const Float* planes, int rows, const Float* weights, Float sum[8][4]) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    unsigned b[9][N][2];
#pragma unroll
    for (int i = 0; i < 9 * N * 2; i++) {
        int tap = i / (2 * N), n = i / 2 % N, half = i % 2;
        b[tap][n][half] = __float_as_uint(weights[(t + 4 * half) * FROM + (8 * n + g) * TO + (MIRRORED ? 8 - tap : tap)]);
    }
    planes += t * ROW<true> + 2 * g;
#pragma unroll
    for (int in = 0; in < 8 / N + 2; in++) {
        if (in >= rows + 2) break;
        Float v[2][4];
        four_from_two(v[0], planes + in * 8 * ROW<true>);
        four_from_two(v[1], planes + (in * 8 + 4) * ROW<true>);
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            int row = in - tap / 3, dx = tap % 3;
            if (row < 0 || row >= 8 / N) continue;
            unsigned a[4] = {__float_as_uint(v[0][dx]), __float_as_uint(v[0][dx + 1]), __float_as_uint(v[1][dx]),
                             __float_as_uint(v[1][dx + 1])};
#pragma unroll
            for (int n = 0; n < N; n++) mma_tf32(sum[row * N + n], a, b[tap][n]);
        }
    }
}

// The sums of convolve_tensor: `visit(row, column, channel, sums of this column and the next)`.
template <int N, class Visit> __device__ __forceinline__ void each_pair(const REAL sum[8][4], Visit visit) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int p = 0; p < 8; p++) {
        visit(p / N, 2 * g, 8 * (p % N) + 2 * t, Two{sum[p][0], sum[p][2]});
        visit(p / N, 2 * g, 8 * (p % N) + 2 * t + 1, Two{sum[p][1], sum[p][3]});
    }
}

// sum += z₂·a for all taps over eight columns of `rows` rows by one warp, for the gradient of w₂: sum[4·tap + e] is that of second
// channel g + e/2·8 and first channel 2t + e%2. Inner elements t and t + 4 of a product are columns 2t and 2t + 1. Up to two rows of
// z₂ beyond the last are read, and are 0.
template <class Float> __device__ __forceinline__ void correlate_tensor(const Float* a, const Float* z, int rows, Float sum[36]) {
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    a += g * ROW<true> + 2 * t;
    z += g * ROW<true> + 2 * t;
    Float v[3][4];
    four_from_two(v[0], a);
    four_from_two(v[1], a + INS * ROW<true>);
#pragma unroll 1
    for (int row = 0; row < rows; row += 3, a += 3 * INS * ROW<true>, z += 3 * OUTS * ROW<true>) {
#pragma unroll
        for (int r = 0; r < 3; r++) {  // three rows, after which v is back in place
            four_from_two(v[(r + 2) % 3], a + (r + 2) * INS * ROW<true>);
            Two low = *(const Two*)(z + r * OUTS * ROW<true>), high = *(const Two*)(z + (r * OUTS + 8) * ROW<true>);
            unsigned left[4] = {__float_as_uint(low.at[0]), __float_as_uint(high.at[0]), __float_as_uint(low.at[1]),
                                __float_as_uint(high.at[1])};
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                const Float* right = v[(r + tap / 3) % 3] + tap % 3;
                unsigned b[2] = {__float_as_uint(right[0]), __float_as_uint(right[1])};
                mma_tf32(sum + 4 * tap, left, b);
            }
        }
    }
}
