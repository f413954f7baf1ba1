#include "conv_pair.cuh"

// Images through conv 3×3 (1→C₁), ReLU, conv 3×3 (C₁→C₂), ReLU: src/ops/conv_pair.rs.
//
// Nothing but inputs and outputs touches device memory: a block holds a tile of the image and of the first feature map a in shared
// memory, and its sums in registers. Columns are handled in strips of four, first channels INS at a time, second channels OUTS at a
// time. With z₂ = dy where y > 0, and z₁ the gradient where a > 0, the backward has two kernels, so that what waits for x's gradient
// waits for nothing else: one for x, w₁ and b₁ (from z₂ through z₁), and one for w₂ and b₂ (from a and z₂). Each leaves partial sums
// of a layer's weights and biases, which `conv_pair_sum` adds.
//
// Kernels whose names end with _tensor multiply on tensor cores wherever second channels take part (TENSOR in the code); they share
// everything else with those that do not. Both math modes that round use tf32 here, which is the more exact: bf16 would want pairs of
// channels, or of columns, packed into words as they are stored.

// ---- Forward ------------------------------------------------------------------------------------------------------------

// One block per image, OUTS channels, `band` rows and `strips` strips; a thread has eight channels on one strip, or a warp all of
// them on four strips of four rows.
template <bool TENSOR>
__device__ __forceinline__ void forward(const REAL* x, const REAL* w1, const REAL* b1, const REAL* w2, const REAL* b2,
                                        const REAL* live, REAL* y, int h, int w, int c1, int c2, int band, int strips) {
    extern __shared__ Four shared[];  // of Fours, so that it is aligned
    Sizes s = {h, w, c1, c2};
    int height = s.rows2(), width = s.columns2(), wide = strips * STRIP;
    int across = pieces_of(width, wide), down = pieces_of(height, band), chunks = pieces_of(c2, OUTS);
    __shared__ int left, top, from, image;  // not in registers, which are few
    if (threadIdx.x == 0) {
        int tile = blockIdx.x;
        left = tile % across * wide, top = tile / across % down * band, from = tile / (across * down) % chunks * OUTS;
        image = tile / (across * down * chunks);
    }
    __syncthreads();
    int rows = least(band, height - top), columns = least(wide, width - left), outs = least(OUTS, c2 - from);
    x += image * s.pixels();
    y += image * s.features();
    auto at = [&](int o, int r, int c) { return ((from + o) * height + top + r) * width + left + c; };
    if (live && live[image] == (REAL)0) {
        each(rows, columns, [&](int r, int c) {
            for (int o = 0; o < outs; o++) y[at(o, r, c)] = 0;
        });
        return;
    }

    REAL* first = (REAL*)shared;
    REAL* second = first + FIRST_WEIGHTS;
    REAL* pixels = second + INS * 9 * OUT_STEP;
    REAL* a = pixels + (band + 4) * X_ROW;
    load_image(s, x, top, left, pixels, rows + 4, wide + 8);

    int row, column, group = 0;
    bool active;
    if constexpr (TENSOR) {
        int warp = threadIdx.x / WARP, squares = strips / 4;
        row = warp / squares * 4, column = warp % squares * 16;
        active = row < rows;
    } else {
        int places = rows * strips;
        group = threadIdx.x / places;
        int place = threadIdx.x - group * places;
        row = place / strips, column = (place - row * strips) * STRIP;
        active = group < 2 && 8 * group < outs;
    }
    REAL sum[8][STRIP];
    for (int p = 0; p < 8; p++) {
        for (int l = 0; l < STRIP; l++) {
            int o = from + (TENSOR ? 8 * (p % 2) + threadIdx.x % 4 * 2 + l % 2 : 8 * group + p);
            sum[p][l] = active && o < c2 ? b2[o] : (REAL)0;
        }
    }
    for (int c = 0; c < c1; c += INS) {
        pack_first(s, w1, b1, c, first);
        for (int i = threadIdx.x; i < OUTS * INS * 9; i += blockDim.x) {
            int o = i / (INS * 9), k = i % (INS * 9);
            REAL weight = o < outs && k < (c1 - c) * 9 ? w2[((from + o) * c1 + c) * 9 + k] : (REAL)0;
            second[TENSOR ? o * W2_FORWARD + k : k * OUT_STEP + o] = stored<TENSOR>(weight);
        }
        __syncthreads();
        first_layer<TENSOR>(pixels, first, a, rows + 2, strips + 1);
        __syncthreads();
        if (active) {
            const REAL* corner = a + row * INS * ROW<TENSOR> + column;
            if constexpr (TENSOR)
                convolve_tensor<2, 9, W2_FORWARD, false>(corner, least(4, rows - row), second, sum);
            else
                convolve<OUT_STEP>(corner, least(INS, c1 - c), second + 8 * group, sum);
        }
        __syncthreads();  // a and the weights are read
    }

    // Through shared memory, so that the rows leave in order.
    REAL* staged = pixels + row * wide + column;
    int plane = band * wide + (TENSOR ? 4 : 0);  // again for the memory banks
    if (active) {
        if constexpr (TENSOR) {
            each_pair<2>(sum, [&](int r, int c, int o, Two value) {
                Two out = {larger(value.at[0], 0), larger(value.at[1], 0)};
                if (row + r < rows) *(Two*)(staged + o * plane + r * wide + c) = out;
            });
        } else {
            for (int p = 0; p < 8; p++) {
                Four out;
                for (int l = 0; l < STRIP; l++) out.at[l] = larger(sum[p][l], 0);
                *(Four*)(staged + (8 * group + p) * plane) = out;
            }
        }
    }
    __syncthreads();
    each(rows, columns, [&](int r, int c) {
#pragma unroll 4
        for (int o = 0; o < outs; o++) y[at(o, r, c)] = pixels[o * plane + r * wide + c];
    });
}

KERNEL __launch_bounds__(288) conv_pair_fwd(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                                            const REAL* __restrict__ w2, const REAL* __restrict__ b2,
                                            const REAL* __restrict__ live, REAL* __restrict__ y, int h, int w, int c1, int c2,
                                            int band, int strips) {
    forward<false>(x, w1, b1, w2, b2, live, y, h, w, c1, c2, band, strips);
}

KERNEL __launch_bounds__(288, RESIDENT)
    conv_pair_fwd_tensor(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                         const REAL* __restrict__ w2, const REAL* __restrict__ b2, const REAL* __restrict__ live,
                         REAL* __restrict__ y, int h, int w, int c1, int c2, int band, int strips) {
    forward<FLOAT>(x, w1, b1, w2, b2, live, y, h, w, c1, c2, band, strips);
}

// ---- Backward: w₂ and b₂ -------------------------------------------------------------------------------------------------

// sum[9·p + tap] += z₂·a over one strip of `rows` rows, for one first channel and every fourth second channel. Up to two rows of z₂
// beyond the last are read, and are 0.
__device__ __forceinline__ void correlate(const REAL* a, const REAL* z, int rows, REAL sum[36]) {
    REAL v[3][6];
    six(v[0], a);
    six(v[1], a + INS * ROW<false>);
#pragma unroll 1
    for (int row = 0; row < rows; row += 3, a += 3 * INS * ROW<false>, z += 3 * OUTS * ROW<false>) {
#pragma unroll
        for (int r = 0; r < 3; r++) {  // three rows, after which v is back in place
            six(v[(r + 2) % 3], a + (r + 2) * INS * ROW<false>);
#pragma unroll
            for (int p = 0; p < 4; p++) {
                Four g = four(z + (r * OUTS + 4 * p) * ROW<false>);
#pragma unroll
                for (int tap = 0; tap < 9; tap++)
                    for (int l = 0; l < STRIP; l++) sum[9 * p + tap] += g.at[l] * v[(r + tap / 3) % 3][tap % 3 + l];
            }
        }
    }
}

// One block per image, part of its tiles, INS first and OUTS second channels; a tile has `tall` rows, and one strip per warp. A lane
// has four second channels and one first channel; or a warp all of them on half of the rows of two strips. sums is
// [n·parts][C₂·C₁·9 + C₂] (w₂, b₂).
template <bool TENSOR>
__device__ __forceinline__ void weights_gradients(const REAL* x, const REAL* w1, const REAL* b1, const REAL* live, const REAL* y,
                                                  const REAL* dy, REAL* sums, int h, int w, int c1, int c2, int tall, int parts) {
    extern __shared__ Four shared[];  // of Fours, so that it is aligned
    Sizes s = {h, w, c1, c2};
    int strips = blockDim.x / WARP, wide = strips * STRIP, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int ins = pieces_of(c1, INS), chunks = ins * pieces_of(c2, OUTS);
    int across = pieces_of(s.columns2(), wide), tiles = across * pieces_of(s.rows2(), tall);
    int part = blockIdx.x / chunks % parts;
    long long image = blockIdx.x / (chunks * parts);
    __shared__ int c0, o0, start, end;  // not in registers, which are few
    if (threadIdx.x == 0) {
        int chunk = blockIdx.x % chunks;
        c0 = chunk % ins * INS, o0 = chunk / ins * OUTS;
        start = live && live[image] == (REAL)0 ? tiles : (int)((long long)tiles * part / parts);
        end = (int)((long long)tiles * (part + 1) / parts);
    }
    __syncthreads();
    x += image * s.pixels();
    y += image * s.features();
    dy += image * s.features();
    REAL* first = (REAL*)shared;
    REAL* bias = first + FIRST_WEIGHTS;
    REAL* pixels = bias + OUTS;
    REAL* z = pixels + (tall + 4) * X_ROW;
    REAL* a = z + tall * OUTS * ROW<TENSOR>;

    pack_first(s, w1, b1, c0, first);
    if (threadIdx.x < OUTS) bias[threadIdx.x] = 0;
    REAL sum[36] = {};  // 9·p + tap for channel o + 4·p; or as correlate_tensor has them
    int c = lane % INS, o = lane / INS;  // and o + 4, o + 8, o + 12
    for (int tile = start; tile < end; tile++) {
        int left = tile % across * wide, top = tile / across * tall, rows = least(tall, s.rows2() - top);
        load_image(s, x, top, left, pixels, tall + 4, wide + 8);
        load_z2<TENSOR, OUTS>(s, y, dy, o0, top, left, z, tall, wide);
        __syncthreads();
        first_layer<TENSOR>(pixels, first, a, tall + 2, strips + 1);
        if (c0 == 0) {
            for (int p = warp; p < OUTS; p += strips) {
                REAL total = 0;
                for (int row = 0; row < rows; row++) {
#pragma unroll 1
                    for (int column = lane; column < wide; column += WARP) total += z[(row * OUTS + p) * ROW<TENSOR> + column];
                }
                total = warp_sum(total);
                if (lane == 0) bias[p] += total;
            }
        }
        __syncthreads();
        if constexpr (TENSOR) {
            int top_row = warp / (strips / 2) * (tall / 2), column = warp % (strips / 2) * 8;
            const REAL* a_at = a + top_row * INS * ROW<TENSOR> + column;
            correlate_tensor(a_at, z + top_row * OUTS * ROW<TENSOR> + column, least(tall / 2, rows - top_row), sum);
        } else {
            correlate(a + c * ROW<TENSOR> + warp * STRIP, z + o * ROW<TENSOR> + warp * STRIP, rows, sum);
        }
        __syncthreads();  // before the next tile is loaded
    }

    // The sums of the warps, by halves; what is left goes out through shared memory too.
    for (int active = strips; active > 1; active = (active + 1) / 2) {
        int half = (active + 1) / 2;
        REAL* mine = pixels + (warp - half) * OUTS * INS * 9 + lane;
        if (warp >= half && warp < active) {
            for (int i = 0; i < 36; i++) mine[i * WARP] = sum[i];
        }
        __syncthreads();
        const REAL* other = pixels + warp * OUTS * INS * 9 + lane;
        if (warp + half < active) {
            for (int i = 0; i < 36; i++) sum[i] += other[i * WARP];
        }
        __syncthreads();
    }
    if (warp == 0) {
        for (int i = 0; i < 36; i++) pixels[i * WARP + lane] = sum[i];
    }
    __syncthreads();
    REAL* out = sums + (image * parts + part) * (c2 * c1 * 9 + c2);
    for (int i = threadIdx.x; i < OUTS * INS * 9; i += blockDim.x) {
        int channel = i / (INS * 9), k = i % (INS * 9);  // as in w₂, and now to where the sum lies
        int from = TENSOR ? (k % 9 * 4 + channel / 8 * 2 + k / 9 % 2) * WARP + channel % 8 * 4 + k / 18
                          : (channel / 4 * 9 + k % 9) * WARP + channel % 4 * INS + k / 9;
        if (o0 + channel < c2 && c0 + k / 9 < c1) out[((o0 + channel) * c1 + c0) * 9 + k] = pixels[from];
    }
    if (c0 == 0 && threadIdx.x < OUTS && o0 + threadIdx.x < c2) out[c2 * c1 * 9 + o0 + threadIdx.x] = bias[threadIdx.x];
}

KERNEL __launch_bounds__(384, RESIDENT)
    conv_pair_bwd_weights(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                          const REAL* __restrict__ live, const REAL* __restrict__ y, const REAL* __restrict__ dy,
                          REAL* __restrict__ sums, int h, int w, int c1, int c2, int tall, int parts) {
    weights_gradients<false>(x, w1, b1, live, y, dy, sums, h, w, c1, c2, tall, parts);
}

KERNEL __launch_bounds__(384, RESIDENT)
    conv_pair_bwd_weights_tensor(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                                 const REAL* __restrict__ live, const REAL* __restrict__ y, const REAL* __restrict__ dy,
                                 REAL* __restrict__ sums, int h, int w, int c1, int c2, int tall, int parts) {
    weights_gradients<FLOAT>(x, w1, b1, live, y, dy, sums, h, w, c1, c2, tall, parts);
}

// ---- Backward: x, w₁ and b₁ ----------------------------------------------------------------------------------------------

// The part of a tile of x for which z₁ is needed.
struct Patch {
    int top, left, rows, columns;          // of x
    int z_top, z_left, z_rows, z_columns;  // of z₁, with a halo of 2 rows, and 4 columns so that strips stay aligned
};

__device__ __forceinline__ Patch patch_of(const Sizes& s, int top, int left, int band, int wide) {
    Patch p = {top, left, least(band, s.h - top), least(wide, s.w - left)};
    p.z_top = most(top - 2, 0), p.z_left = most(left - 4, 0);
    p.z_rows = least(top + p.rows, s.rows1()) - p.z_top, p.z_columns = least(left + p.columns, s.columns1()) - p.z_left;
    return p;
}

// Σ z₁·x for w₁ and Σ z₁ for b₁ over the positions that lie in this tile itself, from channel c0 on, to out [C₁·9 + C₁]. z₁ starts
// 2 rows above and 4 columns before the tile. A lane has one channel on one strip of some rows.
__device__ __forceinline__ void first_gradients(const Sizes& s, const Patch& patch, const REAL* pixels, const REAL* z1, REAL* partial,
                                                int c0, REAL* out) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, c = lane % INS, slot = threadIdx.x / INS;
    int rows = patch.z_top + patch.z_rows - patch.top, strips = pieces_of(patch.z_left + patch.z_columns - patch.left, STRIP);
    REAL sum[10] = {};
    if (rows > 0 && strips > 0) {
        int shares = (int)(blockDim.x / INS) / strips, share = slot / strips, at = (slot - share * strips) * STRIP;
        const REAL* x_at = pixels + (patch.top - patch.z_top) * X_ROW + patch.left - patch.z_left + at;
        int end = share < shares ? rows * (share + 1) / shares : 0;
        for (int row = share < shares ? rows * share / shares : 0; row < end; row++) {
            Four z = four(z1 + ((row + 2) * INS + c) * Z1_ROW + 4 + at);
#pragma unroll
            for (int dy = 0; dy < 3; dy++) {
                REAL v[6];
                six(v, x_at + (row + dy) * X_ROW);
                for (int dx = 0; dx < 3; dx++)
                    for (int l = 0; l < STRIP; l++) sum[dy * 3 + dx] += z.at[l] * v[dx + l];
            }
            sum[9] += (z.at[0] + z.at[1]) + (z.at[2] + z.at[3]);
        }
    }
    for (int i = 0; i < 10; i++) {
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 8);
        sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 16);
        if (lane < INS) partial[(warp * INS + c) * 10 + i] = sum[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < least(INS, s.c1 - c0) * 10; i += blockDim.x) {
        REAL total = 0;
        for (int other = 0; other < (int)(blockDim.x / WARP); other++) total += partial[other * INS * 10 + i];
        int channel = c0 + i / 10, tap = i % 10;
        out[tap < 9 ? channel * 9 + tap : s.c1 * 9 + channel] = total;
    }
}

// One block per image and tile of x, `band` rows of `wide` columns; a thread has INS channels of z₁ on one strip. With tensor cores
// a warp first has their sums on four strips of a quarter of the rows. sums is [n·tiles][C₁·9 + C₁] (w₁, b₁).
template <bool TENSOR>
__device__ __forceinline__ void input_gradients(const REAL* x, const REAL* w1, const REAL* b1, const REAL* w2, const REAL* live,
                                                const REAL* y, const REAL* dy, REAL* dx, int add_dx, REAL* sums, int h, int w,
                                                int c1, int c2, int band, int wide) {
    extern __shared__ Four shared[];  // of Fours, so that it is aligned
    Sizes s = {h, w, c1, c2};
    int across = pieces_of(w, wide), tiles = across * pieces_of(h, band), tile = blockIdx.x % tiles;
    __shared__ int image;  // in shared memory, as Patch: registers are few
    __shared__ Patch patch;
    if (threadIdx.x == 0) {
        image = blockIdx.x / tiles;
        patch = patch_of(s, tile / across * band, tile % across * wide, band, wide);
    }
    __syncthreads();
    x += image * s.pixels();
    y += image * s.features();
    dy += image * s.features();
    if (dx) dx += image * s.pixels();
    REAL* out = sums + (long long)blockIdx.x * c1 * 10;
    auto at = [&](int r, int c) { return (patch.top + r) * w + patch.left + c; };
    if (live && live[image] == (REAL)0) {
        if (dx && !add_dx) each(patch.rows, patch.columns, [&](int r, int c) { dx[at(r, c)] = 0; });
        for (int i = threadIdx.x; i < c1 * 10; i += blockDim.x) out[i] = 0;
        return;
    }
    int warps = blockDim.x / WARP, columns = (warps + 1) * STRIP, x_strips = pieces_of(wide, STRIP);
    REAL* first = (REAL*)shared;
    REAL* mirrored = first + FIRST_WEIGHTS;
    REAL* second = mirrored + INS * TAPS;
    REAL* partial = second + INS * 9 * IN_STEP;
    REAL* gradient = partial + warps * INS * 10;
    REAL* pixels = gradient + band * ROW<TENSOR>;
    REAL* z2 = pixels + (band + 4) * X_ROW;
    REAL* z1 = z2;  // z₁ takes the place of z₂
    load_image(s, x, patch.z_top, patch.z_left, pixels, patch.z_rows + 2, columns);

    int strips = pieces_of(patch.z_columns, STRIP), row = threadIdx.x / strips, column = (threadIdx.x - row * strips) * STRIP;
    bool active = row < patch.z_rows;
    int first_row = 0, side = 0, rows = 0;  // of a warp, with tensor cores
    if constexpr (TENSOR) {
        int quarter = pieces_of(patch.z_rows, 4), warp = threadIdx.x / WARP;
        first_row = warp % 4 * quarter, side = warp / 4 * 16;
        rows = side < patch.z_columns ? least(quarter, patch.z_rows - first_row) : 0;
    }
    for (int c0 = 0; c0 < s.c1; c0 += INS) {
        int channels = least(INS, s.c1 - c0);
        pack_first(s, w1, b1, c0, first);
        for (int i = threadIdx.x; i < INS * 9; i += blockDim.x) {
            mirrored[i / 9 * TAPS + 8 - i % 9] = i < channels * 9 ? w1[c0 * 9 + i] : (REAL)0;
        }
        REAL sum[8][STRIP] = {};
        for (int o0 = 0; o0 < s.c2; o0 += 8) {
            for (int i = threadIdx.x; i < 8 * INS * 9; i += blockDim.x) {
                int o = i / (INS * 9), k = i % (INS * 9), c = k / 9;
                bool inside = o0 + o < s.c2 && c < channels;
                REAL weight = inside ? w2[((o0 + o) * s.c1 + c0) * 9 + k] : (REAL)0;
                second[TENSOR ? o * W2_BACKWARD + k : (o * 9 + 8 - k % 9) * IN_STEP + c] = stored<TENSOR>(weight);
            }
            load_z2<TENSOR, 8>(s, y, dy, o0, patch.z_top - 2, patch.z_left - 2, z2, patch.z_rows + 2, columns);
            __syncthreads();
            if constexpr (TENSOR) {
                const REAL* z2_at = z2 + first_row * 8 * ROW<TENSOR> + side;
                if (rows > 0) convolve_tensor<1, W2_BACKWARD, 9, true>(z2_at, rows, second, sum);
            } else {
                if (active) convolve<IN_STEP>(z2 + row * 8 * ROW<TENSOR> + column, least(8, s.c2 - o0), second, sum);
            }
            __syncthreads();  // z₂ and its weights are read
        }
        for (int i = threadIdx.x; i < (band + 2) * INS * Z1_ROW / 4; i += blockDim.x) ((Four*)z1)[i] = Four{};
        __syncthreads();
        REAL* corner = z1 + (patch.z_top - patch.top + 2) * INS * Z1_ROW + patch.z_left - patch.left + 4;
        if constexpr (TENSOR) {
            each_pair<1>(sum, [&](int r, int c, int channel, Two value) {
                REAL* to = corner + ((first_row + r) * INS + channel) * Z1_ROW + side + c;
                if (r < rows && side + c < patch.z_columns) *(Two*)to = value;
            });
            __syncthreads();
        }
        if (active) {
            REAL* to = corner + row * INS * Z1_ROW + column;
#pragma unroll(TENSOR ? 1 : 2)  // without tensor cores, for the sake of the sums in registers
            for (int half = 0; half < 2; half++) {
                REAL a[4][STRIP];
                first_sums(pixels + row * X_ROW + column, first + 4 * half, a);
                for (int p = 0; p < 4; p++) {
                    Four z;
                    if constexpr (TENSOR) z = four(to + (4 * half + p) * Z1_ROW);
                    for (int l = 0; l < STRIP; l++) {
                        REAL g = TENSOR ? z.at[l] : sum[4 * half + p][l];
                        z.at[l] = a[p][l] > (REAL)0 && column + l < patch.z_columns ? g : (REAL)0;
                    }
                    *(Four*)(to + (4 * half + p) * Z1_ROW) = z;
                }
            }
        }
        __syncthreads();
        if (dx) {
            for (int i = threadIdx.x; i < patch.rows * x_strips; i += blockDim.x) {
                int r = i / x_strips, c = (i - r * x_strips) * STRIP;
                REAL g[STRIP] = {};
                for (int channel = 0; channel < channels; channel++) {
#pragma unroll
                    for (int tap_row = 0; tap_row < 3; tap_row++) {
                        REAL v[6];
                        six_before(v, z1 + ((r + tap_row) * INS + channel) * Z1_ROW + c + 2);
                        for (int tap = 0; tap < 3; tap++)
                            for (int l = 0; l < STRIP; l++) g[l] += v[tap + l] * mirrored[channel * TAPS + tap_row * 3 + tap];
                    }
                }
                // The same thread comes back to the same pixels for the next channels.
                Four* sum_so_far = (Four*)(gradient + r * ROW<TENSOR> + c);
                Four total = c0 ? *sum_so_far : Four{};
                for (int l = 0; l < STRIP; l++) total.at[l] += g[l];
                *sum_so_far = total;
            }
        }
        first_gradients(s, patch, pixels, z1, partial, c0, out);
        __syncthreads();  // z₁ and the weights are read, and `gradient` is complete
    }
    if (dx) {
        each(patch.rows, patch.columns,
             [&](int r, int c) { put(dx, at(r, c), gradient[r * ROW<TENSOR> + c], add_dx); });
    }
}

KERNEL __launch_bounds__(384, RESIDENT)
    conv_pair_bwd_input(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                        const REAL* __restrict__ w2, const REAL* __restrict__ live, const REAL* __restrict__ y,
                        const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ sums, int h, int w, int c1,
                        int c2, int band, int wide) {
    input_gradients<false>(x, w1, b1, w2, live, y, dy, dx, add_dx, sums, h, w, c1, c2, band, wide);
}

KERNEL __launch_bounds__(384, RESIDENT)
    conv_pair_bwd_input_tensor(const REAL* __restrict__ x, const REAL* __restrict__ w1, const REAL* __restrict__ b1,
                               const REAL* __restrict__ w2, const REAL* __restrict__ live, const REAL* __restrict__ y,
                               const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx, REAL* __restrict__ sums, int h, int w,
                               int c1, int c2, int band, int wide) {
    input_gradients<FLOAT>(x, w1, b1, w2, live, y, dy, dx, add_dx, sums, h, w, c1, c2, band, wide);
}

// ---- The sums of both ----------------------------------------------------------------------------------------------------

// Adds up the `count` rows of partial sums of a layer, [weights + biases] each: a thread adds an eighth of them in order, then the
// eighths are added in order.
KERNEL __launch_bounds__(256) conv_pair_sum(const REAL* __restrict__ sums, REAL* dw, int add_dw, REAL* db, int add_db, int weights,
                                            int biases, int count) {
    __shared__ REAL part[8][WARP];
    int lane = threadIdx.x % WARP, eighth = threadIdx.x / WARP, i = blockIdx.x * WARP + lane, size = weights + biases;
    const REAL* from = sums + (i < size ? i : 0);
    int end = (int)((long long)count * (eighth + 1) / 8);
    REAL sum = 0;
#pragma unroll 8
    for (int k = (int)((long long)count * eighth / 8); k < end; k++) sum += from[(long long)k * size];
    part[eighth][lane] = sum;
    __syncthreads();
    if (eighth > 0 || i >= size) return;
    sum = 0;
    for (int k = 0; k < 8; k++) sum += part[k][lane];
    if (i < weights && dw) put(dw, i, sum, add_dw);
    if (i >= weights && db) put(db, i - weights, sum, add_db);
}
