// Matrix products C = A·B by blocks of 256 threads, for kernels that bring their own operands and do their own writing.
//
// A block computes one tile of C. Both operands pass through registers into shared memory (so that a source may compute what it
// hands out, and a tensor core gets rounded numbers), where they lie as [k][m] and [k][n]; while one stage of BK inner elements is
// multiplied the next is on its way. In the end the tile lies in shared memory, from where it is written row by row.
//
// A *source* is a row-major matrix whose elements are asked for by fours: `fetch(row, column, held)` starts to read what four
// neighbours of a row need (column is a multiple of 4; 0 outside), `value(held, out)` gives them later, when that has arrived.

// A block's threads (warps, with tensor cores) form slices; each multiplies its own share of a stage's inner elements.
//
// Thin is for results so small that time is spent waiting: more blocks, and few stages, of which each is a wait for memory.
struct Thin {
    static constexpr bool PACKED = false;
    static constexpr int BM = THIN_M, BN = THIN_N, BK = THIN_K;
    static constexpr int TM = 4, TN = 4, THREAD_SLICES = 16, UNROLL = 2;  // a thread's part of the tile
    static constexpr int WARPS_M = 1, WARPS_N = 1, WARP_SLICES = 8;       // how many warps share the tile
};
struct Small {
    static constexpr bool PACKED = false;
    static constexpr int BM = SMALL_M, BN = SMALL_N, BK = SMALL_K;
    static constexpr int TM = 4, TN = 4, THREAD_SLICES = 4, UNROLL = 2;
    static constexpr int WARPS_M = 2, WARPS_N = 2, WARP_SLICES = 2;
};
struct Large {
    static constexpr bool PACKED = true;
    static constexpr int BM = LARGE_M, BN = LARGE_N, BK = LARGE_K;
    static constexpr int TM = 8, TN = 8, THREAD_SLICES = 2, UNROLL = 2;  // more would need more registers than two blocks can have
    static constexpr int WARPS_M = 2, WARPS_N = 4, WARP_SLICES = 1;
};

// Distance between rows of the staged operands: 8 modulo 32, so that what a warp reads for the tensor cores lies in 32 banks.
#define STRIDE(side) ((side) + STAGE_PAD)
#define TILE_STRIDE(Tile) (Tile::BN + TILE_PAD)
// Columns are swapped by k, so that a transposing store meets different banks; groups of 8 columns stay together.
template <int SIDE> __device__ __forceinline__ int swapped(int column, int k) {
    return column ^ ((k >> 2 & (SIDE < 32 ? SIDE / 8 - 1 : 3)) << 3);
}

// Four numbers from or to an address aligned to 16 bytes.
__device__ __forceinline__ void load4(const REAL* from, REAL out[4]) {
    for (int i = 0; i < 4; i += PACK) *(Pack*)(out + i) = *(const Pack*)(from + i);
}
__device__ __forceinline__ void store4(REAL* to, const REAL in[4]) {
    for (int i = 0; i < 4; i += PACK) *(Pack*)(to + i) = *(const Pack*)(in + i);
}

// The launch's dynamic shared memory.
__device__ __forceinline__ REAL* shared_memory() {
    extern __shared__ Pack memory[];
    return (REAL*)memory;
}

// A matrix in memory; `columns` may be less than the distance between its rows. PACKED promises that columns, stride and address
// let four neighbours be read at once (the tile's business: large ones are only used for such matrices).
template <bool PACKED> struct Rows {
    const REAL* data;
    int rows, columns, stride;
    bool packed;

    __device__ __forceinline__ Rows(const REAL* data, int rows, int columns, int stride)
        : data(data), rows(rows), columns(columns), stride(stride),
          packed(PACKED || (columns % 4 == 0 && stride % 4 == 0 && (u64)data % 16 == 0)) {}

    struct Held {
        alignas(16) REAL x[4];
    };

    __device__ __forceinline__ void fetch(int row, int column, Held& held) const {
        bool inside = row < rows;
        const REAL* from = data + (long long)row * stride + column;
        for (int i = 0; i < 4; i++) held.x[i] = 0;
        if (packed) {
            if (inside && column < columns) load4(from, held.x);
        } else {
            for (int i = 0; i < 4; i++)
                if (inside && column + i < columns) held.x[i] = from[i];
        }
    }

    __device__ __forceinline__ void value(const Held& held, REAL out[4]) const {
        for (int i = 0; i < 4; i++) out[i] = held.x[i];
    }
};

// One operand's way into shared memory. BY_K: a row of the source runs along the inner dimension, else along the tile's side.
template <class Tile, int SIDE, bool BY_K, class Source> struct Stage {
    static constexpr int COUNT = SIDE * Tile::BK / 4 / 256;
    typename Source::Held held[COUNT];

    // By k, a warp takes 16 inner elements of 8 rows: what it reads lies in whole sectors, what it stores in 32 banks.
    static __device__ __forceinline__ int side_of(int v) { return v / 4 % SIDE; }
    static __device__ __forceinline__ int k_of(int v) { return (v % 4 + v / (4 * SIDE) * 4) * 4; }

    __device__ __forceinline__ void fetch(const Source& source, int side, int k) {
        for (int c = 0; c < COUNT; c++) {
            int v = threadIdx.x + c * 256;
            if constexpr (BY_K)
                source.fetch(side + side_of(v), k + k_of(v), held[c]);
            else
                source.fetch(k + v / (SIDE / 4), side + v % (SIDE / 4) * 4, held[c]);
        }
    }

    template <int MATH> __device__ __forceinline__ void store(const Source& source, REAL* to) {
        for (int c = 0; c < COUNT; c++) {
            int v = threadIdx.x + c * 256;
            alignas(16) REAL values[4];
            source.value(held[c], values);
            if constexpr (MATH == TF32)
                for (int i = 0; i < 4; i++) values[i] = __uint_as_float(to_tf32(values[i]));
            if constexpr (MATH == BF16)
                for (int i = 0; i < 4; i++) values[i] = roundable<BF16_BITS>(values[i]);
            if constexpr (BY_K) {
                int side = side_of(v), k = k_of(v);
                for (int i = 0; i < 4; i++) to[(k + i) * STRIDE(SIDE) + swapped<SIDE>(side, k)] = values[i];
            } else {
                int k = v / (SIDE / 4), side = v % (SIDE / 4) * 4;
                store4(to + k * STRIDE(SIDE) + swapped<SIDE>(side, k), values);
            }
        }
    }
};

// A thread's sums without tensor cores: TM×TN elements in squares of 4×4.
template <class Tile> struct Scalar {
    static constexpr int M = Tile::TM / 4, N = Tile::TN / 4;
    static constexpr int ACROSS = Tile::BN / Tile::TN, PER_SLICE = 256 / Tile::THREAD_SLICES, slices = Tile::THREAD_SLICES;
    REAL sum[M * 4][N * 4] = {};

    __device__ __forceinline__ int slice() const { return threadIdx.x / PER_SLICE; }
    __device__ __forceinline__ int row(int i) const {
        return i / 4 * (Tile::BM / M) + threadIdx.x % PER_SLICE / ACROSS * 4 + i % 4;
    }
    __device__ __forceinline__ int column(int j) const { return j / 4 * (Tile::BN / N) + threadIdx.x % ACROSS * 4 + j % 4; }

    __device__ __forceinline__ void multiply(const REAL* a, const REAL* b) {
        constexpr int SHARE = Tile::BK / slices;
#pragma unroll Tile::UNROLL
        for (int kk = 0; kk < SHARE; kk++) {
            int k = slice() * SHARE + kk;
            alignas(16) REAL left[M * 4], right[N * 4];
#pragma unroll
            for (int q = 0; q < M; q++) load4(a + k * STRIDE(Tile::BM) + swapped<Tile::BM>(row(4 * q), k), left + 4 * q);
#pragma unroll
            for (int q = 0; q < N; q++) load4(b + k * STRIDE(Tile::BN) + swapped<Tile::BN>(column(4 * q), k), right + 4 * q);
#pragma unroll
            for (int i = 0; i < M * 4; i++)
#pragma unroll
                for (int j = 0; j < N * 4; j++) sum[i][j] += left[i] * right[j];
        }
    }

    template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int i = 0; i < M * 4; i++)
#pragma unroll
            for (int j = 0; j < N * 4; j++) f(row(i), column(j), sum[i][j]);
    }
};

// A warp's sums with tensor cores. For bf16 the two inner elements of a word are 4 apart in memory instead of neighbours, which
// changes nothing in the sum: so both types read shared memory in the same way.
template <class Tile, int MATH> struct Warp {
    static constexpr int M = Tile::BM / Tile::WARPS_M / 16, N = Tile::BN / Tile::WARPS_N / 8;
    static constexpr int PER_SLICE = Tile::WARPS_M * Tile::WARPS_N, slices = Tile::WARP_SLICES;
    float sum[M][N][4] = {};

    __device__ __forceinline__ int slice() const { return threadIdx.x / WARP / PER_SLICE; }
    __device__ __forceinline__ int row() const {
        return threadIdx.x / WARP % PER_SLICE / Tile::WARPS_N * (M * 16) + threadIdx.x % WARP / 4;
    }
    __device__ __forceinline__ int column() const { return threadIdx.x / WARP % Tile::WARPS_N * (N * 8); }

    // The words (side, k + lane % 4) and (side, k + lane % 4 + 4), and for bf16 those 8 further on, packed.
    template <int SIDE> static __device__ __forceinline__ void words(const float* s, int side, int k, unsigned& first, unsigned& second) {
        k += threadIdx.x % 4;
        auto at = [&](int k) { return s[k * STRIDE(SIDE) + swapped<SIDE>(side, k)]; };
        if constexpr (MATH == TF32) {
            first = __float_as_uint(at(k));
            second = __float_as_uint(at(k + 4));
        } else {
            first = pack_bf16(at(k), at(k + 4));
            second = pack_bf16(at(k + 8), at(k + 12));
        }
    }

    __device__ __forceinline__ void multiply(const float* a, const float* b) {
        constexpr int SHARE = Tile::BK / slices, INNER = MATH == TF32 ? 8 : 16;
#pragma unroll
        for (int kk = 0; kk < SHARE; kk += INNER) {
            int k = slice() * SHARE + kk;
            unsigned left[M][4], right[N][2];
#pragma unroll
            for (int i = 0; i < M; i++) {
                words<Tile::BM>(a, row() + 16 * i, k, left[i][0], left[i][2]);
                words<Tile::BM>(a, row() + 16 * i + 8, k, left[i][1], left[i][3]);
            }
#pragma unroll
            for (int j = 0; j < N; j++)
                words<Tile::BN>(b, column() + 8 * j + threadIdx.x % WARP / 4, k, right[j][0], right[j][1]);
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int j = 0; j < N; j++) {
                    if constexpr (MATH == TF32)
                        mma_tf32(sum[i][j], left[i], right[j]);
                    else
                        mma_bf16(sum[i][j], left[i], right[j]);
                }
        }
    }

    template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    f(row() + 16 * i + e / 2 * 8, column() + 8 * j + threadIdx.x % 4 * 2 + e % 2, sum[i][j][e]);
    }
};

template <class Tile, bool A_BY_K, bool B_BY_K, int MATH, class Sums, class A, class B>
__device__ __forceinline__ void product_of(const A& a, const B& b, int m, int n, int from, int to, REAL* shared) {
    constexpr int A_SIZE = Tile::BK * STRIDE(Tile::BM), SIZE = A_SIZE + Tile::BK * STRIDE(Tile::BN);
    Stage<Tile, Tile::BM, A_BY_K, A> left;
    Stage<Tile, Tile::BN, B_BY_K, B> right;
    Sums sums;
    left.fetch(a, m, from);
    right.fetch(b, n, from);
    left.template store<MATH>(a, shared);
    right.template store<MATH>(b, shared + A_SIZE);
    __syncthreads();
    for (int k = from, stage = 0; k < to; k += Tile::BK, stage ^= 1) {
        bool more = k + Tile::BK < to;
        if (more) {
            left.fetch(a, m, k + Tile::BK);
            right.fetch(b, n, k + Tile::BK);
        }
        sums.multiply(shared + stage * SIZE, shared + stage * SIZE + A_SIZE);
        if (more) {
            left.template store<MATH>(a, shared + (stage ^ 1) * SIZE);
            right.template store<MATH>(b, shared + (stage ^ 1) * SIZE + A_SIZE);
        }
        __syncthreads();
    }
    // The shares of the slices, added in their order: side by side where there is room for all.
    constexpr int TILE = Tile::BM * TILE_STRIDE(Tile);
    if constexpr (Sums::slices * TILE <= 2 * SIZE) {
        REAL* own = shared + sums.slice() * TILE;
        sums.each([&](int row, int column, REAL sum) { own[row * TILE_STRIDE(Tile) + column] = sum; });
        __syncthreads();
        for (int i = threadIdx.x; i < Tile::BM * Tile::BN; i += 256) {
            REAL* at = shared + i / Tile::BN * TILE_STRIDE(Tile) + i % Tile::BN;
            REAL sum = at[0];
#pragma unroll
            for (int slice = 1; slice < Sums::slices; slice++) sum += at[slice * TILE];
            at[0] = sum;
        }
        __syncthreads();
    } else {
        for (int slice = 0; slice < Sums::slices; slice++) {
            if (sums.slice() == slice)
                sums.each([&](int row, int column, REAL sum) { put(shared, row * TILE_STRIDE(Tile) + column, sum, slice > 0); });
            __syncthreads();
        }
    }
}

// The tile of A·B at (m, n), summed over the inner elements `from..to`, as rows of TILE_STRIDE in shared memory. `from` is a
// multiple of 4, and the sources give 0 at `to` and beyond. All threads see the tile; they must synchronise before the next product.
template <class Tile, bool A_BY_K, bool B_BY_K, class A, class B>
__device__ __forceinline__ void product(int math, const A& a, const B& b, int m, int n, int from, int to, REAL* shared) {
    if constexpr (sizeof(REAL) == 4) {
        if (math == TF32) return product_of<Tile, A_BY_K, B_BY_K, TF32, Warp<Tile, TF32>>(a, b, m, n, from, to, shared);
        if (math == BF16) return product_of<Tile, A_BY_K, B_BY_K, BF16, Warp<Tile, BF16>>(a, b, m, n, from, to, shared);
    }
    product_of<Tile, A_BY_K, B_BY_K, F32, Scalar<Tile>>(a, b, m, n, from, to, shared);
}

// Writes `value(row, column, sum)` for the part of the tile at (m, n) that lies in the matrix `out`, or adds it.
template <class Tile, class F>
__device__ __forceinline__ void write_tile(const REAL* tile, int m, int n, REAL* out, int rows, int columns, int add, F value) {
    constexpr int STEP = 256 / Tile::BN, TOGETHER = Tile::BM / STEP < 4 ? Tile::BM / STEP : 4;  // the reads of several rows are under way at once
    int column = threadIdx.x % Tile::BN;
    if (n + column >= columns) return;
    for (int row = threadIdx.x / Tile::BN; row < Tile::BM; row += TOGETHER * STEP) {
        REAL old[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            int r = m + row + i * STEP;
            old[i] = add && r < rows ? out[(long long)r * columns + n + column] : (REAL)0;
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            int r = m + row + i * STEP;
            if (r >= rows) continue;
            out[(long long)r * columns + n + column] = value(r, n + column, tile[(r - m) * TILE_STRIDE(Tile) + column]) + old[i];
        }
    }
}

// ---- What linear and dropout_linear share -------------------------------------------------------------------------------

// What is neither TANH nor RELU changes nothing.
__device__ __forceinline__ REAL activated(int act, REAL x) { return act == TANH ? tanh(x) : act == RELU ? larger(x, (REAL)0) : x; }

// dy·act'(y).
__device__ __forceinline__ REAL undone(int act, REAL dy, REAL y) {
    return act == TANH ? dy * ((REAL)1 - y * y) : act == RELU && !(y > 0) ? (REAL)0 : dy;
}

// The gradient before bias and activation, dz = dy·act'(y), of rows that take part.
struct Undone {
    Rows<false> dy, y;
    int act;
    const REAL* live;  // [images], or null
    int images;

    __device__ __forceinline__ Undone(const REAL* dy, const REAL* y, int act, const REAL* live, int images, int rows, int columns)
        : dy(dy, rows, columns, columns), y(y, rows, columns, columns), act(act), live(live), images(images) {}

    struct Held {
        Rows<false>::Held dy, y;
        bool live;
    };

    __device__ __forceinline__ void fetch(int row, int column, Held& held) const {
        dy.fetch(row, column, held.dy);
        if (act) y.fetch(row, column, held.y);
        held.live = !live || row >= dy.rows || live[row % images] != (REAL)0;
    }

    __device__ __forceinline__ void value(const Held& held, REAL out[4]) const {
        for (int i = 0; i < 4; i++) {
            out[i] = held.live ? held.dy.x[i] : (REAL)0;
            if (act) out[i] = undone(act, out[i], held.y.x[i]);
        }
    }

    __device__ __forceinline__ REAL at(int row, int column) const {
        if (live && live[row % images] == (REAL)0) return 0;
        long long i = (long long)row * dy.columns + column;
        return act ? undone(act, dy.data[i], y.data[i]) : dy.data[i];
    }
};

// Elements from..from + 32 of the bias's gradient, the sums of dz over its rows, by one block; and these columns of dz itself where
// it is wanted.
__device__ __forceinline__ void undo(const Undone& dz, int from, REAL* out, REAL* db, int add_db, REAL* shared) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = from + lane, columns = dz.dy.columns;
    REAL sum = 0;
    if (column < columns)
        for (int row = warp; row < dz.dy.rows; row += 8) {
            REAL g = dz.at(row, column);
            if (out) out[(long long)row * columns + column] = g;
            sum += g;
        }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (!db || warp > 0 || column >= columns) return;
    for (int other = 1; other < 8; other++) sum += shared[other * WARP + lane];
    put(db, column, sum, add_db);
}

__device__ __forceinline__ int tiles(int size, int side) { return (size + side - 1) / side; }
