#include "gemm.cuh"

// Dropout comes as the bits of kernels/dropout.cu, [calls·images, words]. So the products draw no random numbers, and x̂, which is many
// times larger, is never written. A launch serves up to four calls of one rate, that for the weights' gradient up to TABLE.

struct Wide : Large {
    static constexpr int UNROLL = 1;  // x̂ needs some registers too
};

// The bit of an element, in the lowest place.
__device__ __forceinline__ unsigned kept_bits(const unsigned* bits, int row, int column, int columns) {
    return bits[row * ((columns + 31) / 32) + column / 32] >> column % 32;
}

// x̂, as a source: row `call·images + image` is the call's input, scaled, where its bits are 1.
template <bool PACKED> struct Kept {
    const Table &x, &bits;
    REAL scale;
    int images, calls, columns, stride;

    struct Held {
        typename Rows<PACKED>::Held x;
        unsigned bits;
    };

    __device__ __forceinline__ void fetch(int row, int column, Held& held) const {
        int call = row / images;
        bool inside = call < calls && column < columns;
        row -= call * images;
        Rows<PACKED>(x.at[inside ? call : 0], inside ? images : 0, columns, stride).fetch(row, column, held.x);
        held.bits = inside ? kept_bits((const unsigned*)bits.at[call], row, column, stride) : 0;
    }

    __device__ __forceinline__ void value(const Held& held, REAL out[4]) const {
        for (int i = 0; i < 4; i++) out[i] = held.bits >> i & 1 ? held.x.x[i] * scale : (REAL)0;
    }
};

// Σ x̂·Wᵀ over parts of `chunk` inputs, as [parts, calls·images, outputs], for linear_finish. Blocks: rows, outputs, parts.
template <class Tile>
__device__ __forceinline__ void forward(Kept<Tile::PACKED> kept, const REAL* w, REAL* sums, int outputs, int chunk, int math) {
    REAL* shared = shared_memory();
    int m = blockIdx.x * Tile::BM, o = blockIdx.y * Tile::BN, from = blockIdx.z * chunk, rows = kept.calls * kept.images;
    int to = from + chunk < kept.stride ? from + chunk : kept.stride;
    kept.columns = to;
    product<Tile, true, true>(math, kept, Rows<Tile::PACKED>(w, outputs, to, kept.stride), m, o, from, to, shared);
    REAL* part = sums + (long long)blockIdx.z * rows * outputs;
    write_tile<Tile>(shared, m, o, part, rows, outputs, 0, [&](int, int, REAL sum) { return sum; });
}

KERNEL __launch_bounds__(256, 1)
dropout_linear_fwd_small(const __grid_constant__ Table x, const __grid_constant__ Table bits, REAL scale, const REAL* __restrict__ w,
                         REAL* __restrict__ sums, int images, int calls, int inputs, int outputs, int chunk, int math) {
    forward<Small>({x, bits, scale, images, calls, inputs, inputs}, w, sums, outputs, chunk, math);
}

KERNEL __launch_bounds__(256, 2)
dropout_linear_fwd_large(const __grid_constant__ Table x, const __grid_constant__ Table bits, REAL scale, const REAL* __restrict__ w,
                         REAL* __restrict__ sums, int images, int calls, int inputs, int outputs, int chunk, int math) {
    forward<Wide>({x, bits, scale, images, calls, inputs, inputs}, w, sums, outputs, chunk, math);
}

// Where a call's gradient goes, and which calls read the same input, a bit for each: the blocks of the first of them write the sum
// of all, one after the other; those of the others have nothing to do.
struct Input {
    REAL* out;
    int add;
    unsigned calls;
};

// Tiles of dx = dz·W of each call, where its bits are 1.
template <class Tile>
__device__ __forceinline__ void backward(const unsigned* bits, REAL scale, const REAL* w, const REAL* dz, Input in0, Input in1,
                                         Input in2, Input in3, int images, int columns, int outputs, int math) {
    REAL* shared = shared_memory();
    int across = tiles(columns, Tile::BN), down = tiles(images, Tile::BM), block = blockIdx.x;
    int call = block / (down * across), m = block % down * Tile::BM, i = block / down % across * Tile::BN;
    Input input = of_call(call, in0, in1, in2, in3);
    if (!input.out) return;
    for (unsigned left = input.calls; left; left &= left - 1) {
        int other = __ffs(left) - 1;
        const unsigned* kept = bits + (long long)other * images * ((columns + 31) / 32);
        Rows<Tile::PACKED> rows(dz + (long long)other * images * outputs, images, outputs, outputs);
        product<Tile, true, false>(math, rows, Rows<Tile::PACKED>(w, outputs, columns, columns), m, i, 0, outputs, shared);
        write_tile<Tile>(shared, m, i, input.out, images, columns, input.add || other > call, [&](int image, int column, REAL sum) {
            return kept_bits(kept, image, column, columns) & 1 ? sum * scale : (REAL)0;
        });
        __syncthreads();  // the next product stages its operands where the tile is
    }
}

KERNEL __launch_bounds__(256, 1)
dropout_linear_bwd_small(REAL* dx0, int add0, unsigned calls0, REAL* dx1, int add1, unsigned calls1,
                         REAL* dx2, int add2, unsigned calls2, REAL* dx3, int add3, unsigned calls3,
                         const unsigned* __restrict__ bits, REAL scale, const REAL* __restrict__ w, const REAL* __restrict__ dz,
                         int images, int inputs, int outputs, int math) {
    backward<Small>(bits, scale, w, dz, Input{dx0, add0, calls0}, Input{dx1, add1, calls1}, Input{dx2, add2, calls2},
                    Input{dx3, add3, calls3}, images, inputs, outputs, math);
}

KERNEL __launch_bounds__(256, 2)
dropout_linear_bwd_large(REAL* dx0, int add0, unsigned calls0, REAL* dx1, int add1, unsigned calls1,
                         REAL* dx2, int add2, unsigned calls2, REAL* dx3, int add3, unsigned calls3,
                         const unsigned* __restrict__ bits, REAL scale, const REAL* __restrict__ w, const REAL* __restrict__ dz,
                         int images, int inputs, int outputs, int math) {
    backward<Wide>(bits, scale, w, dz, Input{dx0, add0, calls0}, Input{dx1, add1, calls1}, Input{dx2, add2, calls2},
                   Input{dx3, add3, calls3}, images, inputs, outputs, math);
}

// dz of several calls below each other, as a source.
template <bool PACKED> struct Calls : Rows<PACKED> {
    const Table& dz;
    int images, calls;

    __device__ __forceinline__ Calls(const Table& dz, int images, int calls, int columns)
        : Rows<PACKED>(dz.at[0], images, columns, columns), dz(dz), images(images), calls(calls) {}

    __device__ __forceinline__ void fetch(int row, int column, typename Rows<PACKED>::Held& held) const {
        int call = row / images, columns = this->columns;
        bool inside = call < calls;
        Rows<PACKED>(dz.at[inside ? call : 0], inside ? images : 0, columns, columns).fetch(row - call * images, column, held);
    }
};

// Tiles of dW = Σ dzᵀ·x̂ over all rows of up to TABLE calls.
template <class Tile>
__device__ __forceinline__ void weights(const Kept<Tile::PACKED>& kept, const Table& dz, REAL* dw, int add_dw, int outputs, int math) {
    REAL* shared = shared_memory();
    int down = tiles(outputs, Tile::BM), o = blockIdx.x % down * Tile::BM, i = blockIdx.x / down * Tile::BN;
    Calls<Tile::PACKED> rows(dz, kept.images, kept.calls, outputs);
    product<Tile, false, false>(math, rows, kept, o, i, 0, kept.calls * kept.images, shared);
    write_tile<Tile>(shared, o, i, dw, outputs, kept.stride, add_dw, [](int, int, REAL sum) { return sum; });
}

KERNEL __launch_bounds__(256, 1)
dropout_linear_weights_small(const __grid_constant__ Table x, const __grid_constant__ Table bits, const __grid_constant__ Table dz,
                             REAL scale, REAL* dw, int add_dw, int images, int calls, int inputs, int outputs, int math) {
    weights<Small>({x, bits, scale, images, calls, inputs, inputs}, dz, dw, add_dw, outputs, math);
}

KERNEL __launch_bounds__(256, 2)
dropout_linear_weights_large(const __grid_constant__ Table x, const __grid_constant__ Table bits, const __grid_constant__ Table dz,
                             REAL scale, REAL* dw, int add_dw, int images, int calls, int inputs, int outputs, int math) {
    weights<Wide>({x, bits, scale, images, calls, inputs, inputs}, dz, dw, add_dw, outputs, math);
}
