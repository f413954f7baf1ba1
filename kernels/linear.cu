#include "gemm.cuh"

// y = act(x·Wᵀ + b): x [n, inputs], w [outputs, inputs] → y [n, outputs]. Blocks: tiles of rows, tiles of outputs, parts. With
// more than one part (each of `chunk` inputs) the sums go to y as [parts, n, outputs], for linear_finish.
template <class Tile>
__device__ __forceinline__ void forward(const REAL* x, const REAL* w, const REAL* b, REAL* y, int n, int inputs, int outputs, int chunk,
                                        int act, int math) {
    REAL* shared = shared_memory();
    int m = blockIdx.x * Tile::BM, o = blockIdx.y * Tile::BN, from = blockIdx.z * chunk;
    int to = from + chunk < inputs ? from + chunk : inputs;
    Rows<Tile::PACKED> left(x, n, to, inputs), right(w, outputs, to, inputs);
    product<Tile, true, true>(math, left, right, m, o, from, to, shared);
    if (gridDim.z > 1) {
        REAL* part = y + (long long)blockIdx.z * n * outputs;
        write_tile<Tile>(shared, m, o, part, n, outputs, 0, [&](int, int, REAL sum) { return sum; });
    } else {
        write_tile<Tile>(shared, m, o, y, n, outputs, 0, [&](int, int column, REAL sum) {
            return activated(act, sum + b[column]);
        });
    }
}

KERNEL __launch_bounds__(256, 2) linear_fwd_thin(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                                 REAL* __restrict__ y, int n, int inputs, int outputs, int chunk, int act, int math) {
    forward<Thin>(x, w, b, y, n, inputs, outputs, chunk, act, math);
}

KERNEL __launch_bounds__(256) linear_fwd_small(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                               REAL* __restrict__ y, int n, int inputs, int outputs, int chunk, int act, int math) {
    forward<Small>(x, w, b, y, n, inputs, outputs, chunk, act, math);
}

KERNEL __launch_bounds__(256, 2) linear_fwd_large(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b,
                                                  REAL* __restrict__ y, int n, int inputs, int outputs, int chunk, int act, int math) {
    forward<Large>(x, w, b, y, n, inputs, outputs, chunk, act, math);
}

// y = act(Σ parts + b). Rows that are not live give 0. A block has 32 elements: a warp adds every eighth part of them, then the warps' sums
// are added in their order.
KERNEL __launch_bounds__(256) linear_finish(const REAL* __restrict__ sums, const REAL* __restrict__ b, const REAL* __restrict__ live,
                                            REAL* __restrict__ y, int parts, int rows, int images, int outputs, int act) {
    __shared__ REAL shared[256];
    int n = rows * outputs, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, i = blockIdx.x * WARP + lane;
    REAL sum = 0;
    if (i < n)
#pragma unroll 8
        for (int part = warp; part < parts; part += 8) sum += sums[(long long)part * n + i];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || i >= n) return;
    for (int other = 1; other < 8; other++) sum += shared[other * WARP + lane];
    bool stands = live && live[i / outputs % images] == (REAL)0;
    y[i] = stands ? (REAL)0 : activated(act, sum + b[i % outputs]);
}

// Two kinds of blocks: tiles (TileX) of dx = dz·W, then tiles of dW = dzᵀ·x; a null pointer has none. Returns how many they are.
template <class TileX, class Tile, class Dz>
__device__ __forceinline__ int backward(const Dz& dz, const REAL* x, const REAL* w, REAL* dx, int add_dx, REAL* dw, int add_dw, int n,
                                        int inputs, int outputs, int math, REAL* shared) {
    int block = blockIdx.x, for_dx = dx ? tiles(n, TileX::BM) * tiles(inputs, TileX::BN) : 0;
    int for_dw = dw ? tiles(outputs, Tile::BM) * tiles(inputs, Tile::BN) : 0;
    auto as_is = [](int, int, REAL sum) { return sum; };
    if (block < for_dx) {
        int m = block % tiles(n, TileX::BM) * TileX::BM, i = block / tiles(n, TileX::BM) * TileX::BN;
        product<TileX, true, false>(math, dz, Rows<TileX::PACKED>(w, outputs, inputs, inputs), m, i, 0, outputs, shared);
        write_tile<TileX>(shared, m, i, dx, n, inputs, add_dx, as_is);
    } else if (block < for_dx + for_dw) {
        block -= for_dx;
        int o = block % tiles(outputs, Tile::BM) * Tile::BM, i = block / tiles(outputs, Tile::BM) * Tile::BN;
        product<Tile, false, false>(math, dz, Rows<Tile::PACKED>(x, n, inputs, inputs), o, i, 0, n, shared);
        write_tile<Tile>(shared, o, i, dw, outputs, inputs, add_dw, as_is);
    }
    return for_dx + for_dw;
}

// All of a small layer: dz is made where it is used. Blocks beyond those of the products: 32 elements of db each.
template <class TileX>
__device__ __forceinline__ void backward_small(const REAL* x, const REAL* w, const REAL* y, const REAL* dy, REAL* dx, int add_dx, REAL* dw,
                                               int add_dw, REAL* db, int add_db, int n, int inputs, int outputs, int act, int math) {
    REAL* shared = shared_memory();
    Undone dz(dy, y, act, nullptr, n, n, outputs);
    int others = backward<TileX, Small>(dz, x, w, dx, add_dx, dw, add_dw, n, inputs, outputs, math, shared);
    if ((int)blockIdx.x >= others) undo(dz, (blockIdx.x - others) * 32, nullptr, db, add_db, shared);
}

KERNEL __launch_bounds__(256) linear_bwd_thin(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ y,
                                              const REAL* __restrict__ dy, REAL* dx, int add_dx, REAL* dw, int add_dw, REAL* db,
                                              int add_db, int n, int inputs, int outputs, int act, int math) {
    backward_small<Thin>(x, w, y, dy, dx, add_dx, dw, add_dw, db, add_db, n, inputs, outputs, act, math);
}

KERNEL __launch_bounds__(256) linear_bwd_small(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ y,
                                               const REAL* __restrict__ dy, REAL* dx, int add_dx, REAL* dw, int add_dw, REAL* db,
                                               int add_db, int n, int inputs, int outputs, int act, int math) {
    backward_small<Small>(x, w, y, dy, dx, add_dx, dw, add_dw, db, add_db, n, inputs, outputs, act, math);
}

// The products of a large layer, whose dz comes from linear_undo.
KERNEL __launch_bounds__(256, 2) linear_bwd_large(const REAL* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ dz,
                                                  REAL* dx, int add_dx, REAL* dw, int add_dw, int n, int inputs, int outputs,
                                                  int math) {
    Rows<true> source(dz, n, outputs, outputs);
    backward<Large, Large>(source, x, w, dx, add_dx, dw, add_dw, n, inputs, outputs, math, shared_memory());
}

// dz = dy·act'(y) [rows, outputs] of live rows, 0 of the others; db its sum over rows. A block has 32 columns.
KERNEL __launch_bounds__(256) linear_undo(const REAL* __restrict__ y, const REAL* __restrict__ dy, const REAL* __restrict__ live,
                                          REAL* __restrict__ dz, REAL* db, int add_db, int rows, int images, int outputs, int act) {
    __shared__ REAL shared[256];
    undo(Undone(dy, y, act, live, images, rows, outputs), blockIdx.x * 32, dz, db, add_db, shared);
}
