// Ink of a sampled curve: G = Ey^T·Ex with Ex[n, j] = exp(-(x_n - j/side)^2 / 2s^2), Ey likewise. For images and curves of any size.

#define TILE 64     // a block of raster_fwd draws TILE×TILE pixels,
#define CHUNK 16    // this many samples at a time,
#define EACH 4      // a thread EACH×EACH of them, 16 apart: neighbours read neighbouring words
#define STRIP 32    // rows of dG that raster_bwd holds at a time

// p/side, rounded once: the division of whole numbers without the path that a division needs for extremes.
__device__ __forceinline__ REAL place(int p, REAL side, REAL inverse) {
    REAL q = (REAL)p * inverse;
    return fma(fma(-q, side, (REAL)p), inverse, q);
}

// curve [N, S, 2], sigma [N] (`step` apart), live [N] or null (nothing is written where it is 0) -> ink [N, side, side].
// Blocks: strokes, rows of tiles, columns of tiles.
KERNEL __launch_bounds__(256) raster_fwd(const REAL* __restrict__ curve, const REAL* __restrict__ sigma, const REAL* __restrict__ live,
                                         REAL* __restrict__ ink, int samples, int side, int step) {
    __shared__ REAL e[2][CHUNK][TILE];
    int stroke = blockIdx.x, top = blockIdx.y * TILE, left = blockIdx.z * TILE;
    if (live && live[stroke] == (REAL)0) return;
    REAL inverse = (REAL)1 / (REAL)side, wide = sigma[(long long)stroke * step], scale = (REAL)-0.5 / (wide * wide);
    const REAL* at = curve + (long long)stroke * 2 * samples;
    int column = threadIdx.x % 16, row = threadIdx.x / 16;
    REAL sums[EACH][EACH] = {};
    for (int from = 0; from < samples; from += CHUNK) {
        for (int k = threadIdx.x; k < 2 * CHUNK * TILE; k += blockDim.x) {
            int axis = k / (CHUNK * TILE), n = k / TILE % CHUNK, p = k % TILE;
            REAL d = 0;
            if (from + n < samples) d = at[2 * (from + n) + axis] - place(p + (axis ? top : left), side, inverse);
            e[axis][n][p] = from + n < samples ? exp(d * d * scale) : (REAL)0;
        }
        __syncthreads();
        for (int n = 0; n < CHUNK; n++) {
            REAL x[EACH], y[EACH];
            for (int k = 0; k < EACH; k++) {
                x[k] = e[0][n][column + 16 * k];
                y[k] = e[1][n][row + 16 * k];
            }
            for (int r = 0; r < EACH; r++)
                for (int c = 0; c < EACH; c++) sums[r][c] += y[r] * x[c];
        }
        __syncthreads();  // the next chunk overwrites e
    }
    for (int r = 0; r < EACH; r++) {
        for (int c = 0; c < EACH; c++) {
            int i = top + row + 16 * r, j = left + column + 16 * c;
            if (i < side && j < side) ink[((long long)stroke * side + i) * side + j] = sums[r][c];
        }
    }
}

// One block per stroke, two samples per warp at a time. With d = y_n - i/side, a lane sums Ey, Ey·d, Ey·d^2 times dG over the rows of
// its columns; what is left is a sum over columns. Gradients of strokes that are not live are 0.
KERNEL __launch_bounds__(256, 2) raster_bwd(const REAL* __restrict__ curve, const REAL* __restrict__ sigma, const REAL* __restrict__ live,
                                         const REAL* __restrict__ dink, REAL* dcurve, int add_dcurve, REAL* dsigma, int add_dsigma,
                                         int samples, int side, int step) {
    __shared__ REAL tile[STRIP][TILE], e[16][STRIP], ed[16][STRIP], edd[16][STRIP];
    long long stroke = blockIdx.x;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const REAL *at = curve + stroke * 2 * samples, *d = dink + stroke * side * side;
    if (live && live[stroke] == (REAL)0) {
        for (int k = threadIdx.x; dcurve && k < 2 * samples; k += blockDim.x) put(dcurve, stroke * 2 * samples + k, 0, add_dcurve);
        if (dsigma && threadIdx.x == 0) put(dsigma, stroke * step, 0, add_dsigma);
        return;
    }
    REAL inverse = (REAL)1 / (REAL)side, wide = sigma[stroke * step], square = wide * wide, scale = (REAL)-0.5 / square, spread = 0;
    for (int from = 0; from < samples; from += 16) {
        REAL dx[2] = {}, dy[2] = {};
        for (int top = 0; top < side; top += STRIP) {
            for (int k = threadIdx.x; k < 16 * STRIP; k += blockDim.x) {
                int n = k / STRIP, i = k % STRIP;
                bool inside = from + n < samples && top + i < side;
                REAL off = inside ? at[2 * (from + n) + 1] - place(top + i, side, inverse) : (REAL)0;
                REAL value = inside ? exp(off * off * scale) : (REAL)0;
                e[n][i] = value;
                ed[n][i] = value * off;
                edd[n][i] = value * off * off;
            }
            for (int left = 0; left < side; left += TILE) {
                for (int k = threadIdx.x; k < STRIP * TILE; k += blockDim.x) {
                    int i = top + k / TILE, j = left + k % TILE;
                    tile[k / TILE][k % TILE] = i < side && j < side ? d[(long long)i * side + j] : (REAL)0;
                }
                __syncthreads();
                REAL sums[2][2][3] = {};
                for (int i = 0; i < STRIP; i++) {
                    for (int s = 0; s < 2; s++) {
                        int n = 2 * warp + s;
                        REAL weights[3] = {e[n][i], ed[n][i], edd[n][i]};
                        for (int c = 0; c < 2; c++)
                            for (int k = 0; k < 3; k++) sums[s][c][k] += weights[k] * tile[i][lane + c * WARP];
                    }
                }
                for (int s = 0; s < 2; s++) {
                    int n = from + 2 * warp + s;
                    if (n >= samples) continue;
                    for (int c = 0; c < 2; c++) {
                        REAL off = at[2 * n] - place(left + lane + c * WARP, side, inverse);
                        REAL value = exp(off * off * scale);
                        dx[s] += value * off * sums[s][c][0];
                        dy[s] += value * sums[s][c][1];
                        spread += value * (off * off * sums[s][c][0] + sums[s][c][2]);
                    }
                }
                __syncthreads();  // the next tile overwrites this one
            }
        }
        for (int s = 0; s < 2; s++) {
            int n = from + 2 * warp + s;
            REAL x = (scale + scale) * warp_sum(dx[s]), y = (scale + scale) * warp_sum(dy[s]);
            if (!dcurve || n >= samples || lane != 0) continue;
            put(dcurve, (stroke * samples + n) * 2, x, add_dcurve);
            put(dcurve, (stroke * samples + n) * 2 + 1, y, add_dcurve);
        }
    }
    spread = block_sum(spread);
    if (dsigma && threadIdx.x == 0) put(dsigma, stroke * step, spread / (square * wide), add_dsigma);
}
