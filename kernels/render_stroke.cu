// One stroke per block, from control points to its image and back.
//
// The fast kernels keep everything between in shared memory: the curve, the Gaussians Ex and Ey, the ink Ey^T·Ex and its gradient. They
// serve images of up to 64 pixels a side and curves of up to 128 samples and 32 points, as far as they fit; see `Fast` in
// src/ops/render_stroke/launches.rs, which computes the same sizes. The naive ones do what is particular to a stroke on images of any size,
// between the kernels of bezier.cu, place_points.cu and raster.cu.

#define WARPS (THREADS / WARP)
#define MOST_PIXELS (MOST_SIDE * MOST_SIDE / THREADS)  // per thread
#define SUMS 8          // of the backward: six of the matrix, two of the pen

__device__ __forceinline__ int round_up(int n, int to) { return (n + to - 1) / to * to; }

__device__ __forceinline__ int most_of(int a, int b) { return a > b ? a : b; }

__device__ __forceinline__ void load4(REAL to[4], const REAL* from) {
#pragma unroll
    for (int k = 0; k < 4; k += PACK) {
        Pack pack = *(const Pack*)(from + k);
#pragma unroll
        for (int l = 0; l < PACK; l++) to[k + l] = pack.at[l];
    }
}

__device__ __forceinline__ void store4(REAL* to, const REAL from[4]) {
#pragma unroll
    for (int k = 0; k < 4; k += PACK) {
        Pack pack;
#pragma unroll
        for (int l = 0; l < PACK; l++) pack.at[l] = from[k + l];
        *(Pack*)(to + k) = pack;
    }
}

// p/side, rounded once: the division of whole numbers without the path that a division needs for extremes.
__device__ __forceinline__ REAL place(int p, REAL side, REAL inverse) {
    REAL q = (REAL)p * inverse;
    return fma(fma(-q, side, (REAL)p), inverse, q);
}

// Row and column of this thread's pixels, one after the other, without a division for each.
struct Pixel {
    int at, i, j, side, down, right;
    __device__ explicit Pixel(int side_) : side(side_) {
        at = threadIdx.x, i = at / side, j = at % side;
        down = blockDim.x / side, right = blockDim.x % side;
    }
    __device__ bool inside() const { return i < side; }
    __device__ void next() {
        at += blockDim.x, i += down, j += right;
        if (j >= side) j -= side, i++;
    }
};

// ---- The warp -----------------------------------------------------------------------------------------------------------

// Where the map of a square image puts pixel (i, j), with u = j - half and v = i - half; the identity is exact.
struct Map {
    REAL a, b, c, d, right, down, half, limit;
    __device__ Map(const REAL* m, int side) : a(m[0]), b(m[1]), c(m[3]), d(m[4]), limit((REAL)side) {
        half = (REAL)0.5 * (REAL)(side - 1);
        right = half * (m[2] + (REAL)1);
        down = half * (m[5] + (REAL)1);
    }
    __device__ REAL column(REAL u, REAL v) const { return a * u + (b * v + right); }
    __device__ REAL row(REAL u, REAL v) const { return c * u + (d * v + down); }
};

// The four pixels around a sample, 0 outside of the image, and how far right of and below the first it is. All 0 where none is inside.
struct Patch {
    REAL corner[4], right, below;
    bool outside;
    __device__ Patch(const Map& map, const REAL* image, int side, int i, int j) {
        REAL u = (REAL)j - map.half, v = (REAL)i - map.half;
        REAL x = map.column(u, v), y = map.row(u, v);
        corner[0] = corner[1] = corner[2] = corner[3] = right = below = 0;
        outside = x <= (REAL)-1 || y <= (REAL)-1 || x >= map.limit || y >= map.limit;  // false of a map that is not finite, which shows
        if (outside) return;
        // Whole numbers from 0 on, since a conversion rounds towards 0.
        unsigned column = (unsigned)(int)(x + (REAL)1) - 1, row = (unsigned)(int)(y + (REAL)1) - 1, size = side;
        right = x - (REAL)(int)column, below = y - (REAL)(int)row;
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            unsigned r = row + k / 2, c = column + k % 2;
            corner[k] = r < size && c < size ? image[r * size + c] : (REAL)0;
        }
    }
    __device__ REAL value() const {
        REAL above = corner[0] + (corner[1] - corner[0]) * right, under = corner[2] + (corner[3] - corner[2]) * right;
        return above + (under - above) * below;
    }
};

// Added to sums, with d the gradient of one sample: that of the map, and d times the sample.
__device__ __forceinline__ void map_slopes(REAL sums[7], const Map& map, const REAL* image, int side, REAL d, int i, int j) {
    Patch patch(map, image, side, i, j);
    if (patch.outside) return;
    REAL across = patch.corner[1] - patch.corner[0], down = patch.corner[2] - patch.corner[0];
    REAL twist = patch.corner[3] - patch.corner[2] - across;
    REAL column = d * (twist * patch.below + across), row = d * (twist * patch.right + down);
    REAL u = (REAL)j - map.half, v = (REAL)i - map.half;
    sums[0] += column * u, sums[1] += column * v, sums[2] += map.half * column;
    sums[3] += row * u, sums[4] += row * v, sums[5] += map.half * row;
    sums[6] += d * patch.value();
}

// The transpose of the warp, one pixel of the image at a time: the sum over the samples that see it, in order, so that no two threads
// write to one place. A sample (x, y) sees pixel (px, py) with weight (1 - |x - px|)(1 - |y - py|) where both are positive.
struct Gather {
    REAL to_row[2], reach, per_column[2], width[2];

    // Bounds are a little wide; what they let in in vain has weight 0.
    __device__ Gather(const Map& map, int side) {
        const REAL all = (REAL)(4 * side);
        REAL det = map.a * map.d - map.b * map.c;
        bool bounded = fabs(det) > (REAL)0.01 * (fabs(map.a * map.d) + fabs(map.b * map.c));
        to_row[0] = bounded ? -map.c / det : (REAL)0;
        to_row[1] = bounded ? map.a / det : (REAL)0;
        reach = bounded ? (REAL)1.02 * (fabs(to_row[0]) + fabs(to_row[1])) + (REAL)0.05 : all;
        REAL slopes[2] = {map.a, map.c};
        for (int k = 0; k < 2; k++) {
            bool steep = fabs(slopes[k]) * (REAL)side > (REAL)1;
            per_column[k] = steep ? (REAL)-1 / slopes[k] : (REAL)0;
            width[k] = steep ? (REAL)1.02 * fabs(per_column[k]) + (REAL)0.05 : all;
        }
    }

    // The first whole number from `low` on (or the one before, where it is that close), and the first above `high`, limited to
    // 0 ..= side. Everything if one is not a number.
    __device__ static int first(REAL low, REAL side) { return (int)smaller(larger(low + (REAL)0.999, (REAL)0), side); }
    __device__ static int end(REAL high, REAL side) { return (int)larger(smaller(high + (REAL)1, side), (REAL)0); }

    __device__ REAL at(const Map& map, const REAL* dplaced, int side, int i, int j) const {
        REAL x = map.right - (REAL)j, y = map.down - (REAL)i, sum = 0;
        REAL middle = map.half - (to_row[0] * x + to_row[1] * y);
        int row = first(middle - reach, map.limit), last = end(middle + reach, map.limit);
        for (REAL v = (REAL)row - map.half; row < last; row++, v += 1) {
            REAL rx = map.b * v + x, ry = map.d * v + y;
            REAL one = per_column[0] * rx + map.half, two = per_column[1] * ry + map.half;
            int column = first(larger(one - width[0], two - width[1]), map.limit);
            int stop = end(smaller(one + width[0], two + width[1]), map.limit);
            const REAL* d = dplaced + row * side;
            for (REAL u = (REAL)column - map.half; column < stop; column++, u += 1) {
                REAL near = larger((REAL)1 - fabs(map.a * u + rx), (REAL)0);
                near *= larger((REAL)1 - fabs(map.c * u + ry), (REAL)0);
                sum += near * d[column];
            }
        }
        return sum;
    }
};

// ---- The curve ----------------------------------------------------------------------------------------------------------

// basis[n·points + j] = C(points-1, j)·(1-u)^(points-1-j)·u^j at u = n/(samples-1), in double precision and rounded once. `choose` has
// been filled by `binomials` before the last barrier.
__device__ __forceinline__ void bernstein(REAL* basis, const double* choose, int points, int samples) {
    double unit = choose[MOST_POINTS];
    for (int k = threadIdx.x; k < points * samples; k += blockDim.x) {
        int n = k / points, j = k - n * points;
        double u = n * unit, other = (samples - 1 - n) * unit, weight = choose[j];
        for (int l = 0; l < points - 1; l++) weight *= l < j ? u : other;
        basis[k] = (REAL)weight;
    }
}

// The binomial coefficients of that degree, and the distance of the samples.
__device__ __forceinline__ void binomials(double* choose, int points, int samples) {
    if ((int)threadIdx.x < points) {
        double above = 1, below = 1;
        for (int k = 0; k < (int)threadIdx.x; k++) above *= points - 1 - k, below *= k + 1;
        choose[threadIdx.x] = above / below;
    }
    if (threadIdx.x == MOST_POINTS) choose[MOST_POINTS] = 1.0 / (samples - 1);
}

// Coordinate k%2 of control point k/2, where it is drawn.
__device__ __forceinline__ REAL moved_point(const REAL* z, const REAL* m, int k, int warped) {
    if (warped) return z[k];
    REAL x = z[k & ~1] + z[k & ~1] - (REAL)1, y = z[k | 1] + z[k | 1] - (REAL)1;
    const REAL* row = m + k % 2 * 3;
    return (REAL)0.5 * (row[0] * x + row[1] * y + row[2]) + (REAL)0.5;
}

// Further than any pen reaches: samples that fill up a row leave no ink, and take part in nothing.
#define FAR_AWAY ((REAL)1e6)

// curve[axis·stride + n], FAR_AWAY beyond the samples.
__device__ __forceinline__ void sample_curve(REAL* curve, int stride, const REAL* basis, const REAL* moved, int points, int samples) {
    for (int k = threadIdx.x; k < 2 * stride; k += blockDim.x) {
        int axis = k >= stride, n = k - axis * stride;
        REAL sum = n < samples ? (REAL)0 : FAR_AWAY;
        for (int j = 0; n < samples && j < points; j++) sum += basis[n * points + j] * moved[2 * j + axis];
        curve[k] = sum;
    }
}

// exp(-d^2/2s^2) with `scale` = -1/(2·ln 2·s^2): the power of two is what the hardware has.
__device__ __forceinline__ REAL gaussian(REAL d, REAL scale) { return exp2(d * d * scale); }
#define HALF_PER_LN2 ((REAL)0.72134752044448170)
// Pen widths from which on it is below 1e-19 (1e-154 in double precision), which is nothing beside the 1 that it comes from.
#define REACH (sizeof(REAL) == 4 ? (REAL)9.4 : (REAL)26.7)

// ---- Forward ------------------------------------------------------------------------------------------------------------

// points [N, 2J], matrix [N, 6], pen [N, 2], on [N] -> y and raw [N, side, side], most [N]. Where a stroke is off, y is 0 and the others
// are not written. Shared memory: Ex and Ey [S, stride] each, ink [side, side] over the basis [S, J], moved [2J], curve [2, S]. S is rounded up.
KERNEL __launch_bounds__(THREADS) render_stroke_fwd(const REAL* __restrict__ points, const REAL* __restrict__ matrix,
                                                    const REAL* __restrict__ pen, const REAL* __restrict__ on, REAL* __restrict__ y,
                                                    REAL* __restrict__ raw, REAL* __restrict__ most, int count, int side, int samples,
                                                    int warped, REAL floor) {
    extern __shared__ Pack shared[];
    __shared__ double choose[MOST_POINTS + 1];
    long long stroke = blockIdx.x, first = stroke * side * side;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    REAL is_on = on[stroke], sigma = pen[2 * stroke], slope = pen[2 * stroke + 1], inverse = (REAL)1 / (REAL)side, limit = (REAL)side;
    binomials(choose, count, samples);  // while the loads are on their way
    if (is_on == (REAL)0) {
        for (int p = threadIdx.x; p < side * side; p += THREADS) y[first + p] = 0;
        return;
    }
    // An odd multiple of 8: tiles are whole, and samples four apart lie in different banks.
    int stride = round_up(side, 8) | 8, deep = round_up(samples, 4);
    REAL *ex = shared[0].at, *ey = ex + deep * stride, *ink = ey + deep * stride, *basis = ink;
    REAL *moved = ink + most_of(side * side, samples * count), *curve = moved + 2 * count;
    const REAL* m = matrix + 6 * stroke;

    for (int k = threadIdx.x; k < 2 * count; k += THREADS) moved[k] = moved_point(points + stroke * 2 * count, m, k, warped);
    __syncthreads();
    bernstein(basis, choose, count, samples);
    __syncthreads();
    sample_curve(curve, deep, basis, moved, count, samples);
    __syncthreads();

    // A warp per row of Ex and Ey.
    REAL scale = -HALF_PER_LN2 / (sigma * sigma);
    for (int p = lane; p < stride; p += WARP) {
        REAL position = place(p, limit, inverse);
        for (int row = warp; row < 2 * deep; row += WARPS) ex[row * stride + p] = gaussian(curve[row] - position, scale);
    }
    __syncthreads();

    // The ink: a lane has 8×4 pixels and every fourth sample, as far as they reach the rows of its warp; then the four lanes of a tile
    // add up what they have.
    int across = (side + 3) / 4, tiles = (side + 7) / 8 * across, quarter = lane / 8;
    if (warp * 8 < tiles) {
        int tile = warp * 8 + lane % 8, held = tile < tiles ? tile : tiles - 1, top = held / across * 8, left = held % across * 4;
        int mine = quarter & 2 ? 4 : 0;  // the rows that this lane will complete come first, those it gives to another last
        // Which fours of samples are near: lane k looks at samples 4k...
        REAL above = (REAL)(warp * 8 / across * 8) * inverse - REACH * fabs(sigma);
        REAL under = (REAL)((warp * 8 + 7) / across * 8 + 7) * inverse + REACH * fabs(sigma);
        bool near = false;
        for (int n = 4 * lane; n < 4 * lane + 4 && n < deep; n++) near |= !(curve[deep + n] < above || curve[deep + n] > under);
        unsigned active = __ballot_sync(ALL_LANES, near);
        const REAL *keep = ey + quarter * stride + top + mine, *give = keep + 4 - 2 * mine, *row = ex + quarter * stride + left;
        REAL sums[8][4] = {};
        for (; active; active &= active - 1) {
            int at = (__ffs((int)active) - 1) * 4 * stride;
            REAL a[8], b[4];
            load4(a, keep + at);
            load4(a + 4, give + at);
            load4(b, row + at);
#pragma unroll
            for (int r = 0; r < 8; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) sums[r][c] += a[r] * b[c];
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                REAL sum = sums[r][c] + __shfl_xor_sync(ALL_LANES, sums[r + 4][c], 16);
                sum += __shfl_xor_sync(ALL_LANES, sum, 8);
                int i = top + mine + r, j = left + c;
                if (quarter % 2 == 0 && tile < tiles && i < side && j < side) ink[i * side + j] = sum;
            }
        }
    }
    __syncthreads();

    Map map(m, side);
    REAL placed[MOST_PIXELS], peak = 0;
    Pixel pixel(side);
#pragma unroll
    for (int k = 0; k < MOST_PIXELS; k++) {
        if (pixel.inside()) {
            raw[first + pixel.at] = ink[pixel.at];
            placed[k] = warped ? Patch(map, ink, side, pixel.i, pixel.j).value() : ink[pixel.at];
            peak = larger(placed[k], peak);
        }
        pixel.next();
    }
    peak = block_max(peak);
    REAL divisor = peak >= floor ? peak : (REAL)1, steep = (REAL)1 / (divisor * slope);
#pragma unroll
    for (int k = 0; k < MOST_PIXELS; k++) {
        int p = threadIdx.x + k * THREADS;
        if (p < side * side) y[first + p] = tanh(placed[k] * steep);
    }
    if (threadIdx.x == 0) most[stroke] = divisor;
}

// ---- Backward -----------------------------------------------------------------------------------------------------------

// Where a row of dG holds pixel p: the four that a thread takes with one load are `groups` apart, so that their rows of Ex, which
// threads side by side read, lie in different banks.
__device__ __forceinline__ int place_in_row(int p, int groups) {
    int quarter = (p >= groups) + (p >= 2 * groups) + (p >= 3 * groups);
    return 4 * (p - quarter * groups) + quarter;
}

// From what the forward read and wrote, and dr [N, side, side], the gradients of points, matrix, pen. Shared memory: Ex and Ey
// transposed [pixels, deep] each, over the raw and the placed image; dG and its transpose [side, pixels], over sums over columns;
// moved [2J], curve [2, deep], and its gradient over the Gaussians.
KERNEL __launch_bounds__(THREADS) render_stroke_bwd(const REAL* __restrict__ points, const REAL* __restrict__ matrix,
                                                    const REAL* __restrict__ pen, const REAL* __restrict__ on,
                                                    const REAL* __restrict__ r, const REAL* __restrict__ raw,
                                                    const REAL* __restrict__ most, const REAL* __restrict__ dr, REAL* dpoints,
                                                    int add_dpoints, REAL* dmatrix, int add_dmatrix, REAL* dpen, int add_dpen,
                                                    int count, int side, int samples, int warped) {
    extern __shared__ Pack shared[];
    __shared__ double choose[MOST_POINTS + 1];
    __shared__ REAL parts[SUMS][WARPS], dmoved[2 * MOST_POINTS];
    long long stroke = blockIdx.x, first = stroke * side * side;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    REAL is_on = on[stroke], sigma = pen[2 * stroke], slope = pen[2 * stroke + 1], inverse = (REAL)1 / (REAL)side, limit = (REAL)side;
    binomials(choose, count, samples);  // while the loads are on their way
    if (is_on == (REAL)0) {
        for (int k = threadIdx.x; dpoints && k < 2 * count; k += THREADS) put(dpoints, stroke * 2 * count + k, 0, add_dpoints);
        if (dmatrix && threadIdx.x < 6) put(dmatrix, stroke * 6 + threadIdx.x, 0, add_dmatrix);
        if (dpen && threadIdx.x < 2) put(dpen, stroke * 2 + threadIdx.x, 0, add_dpen);
        return;
    }
    int pixels = round_up(side, 4), deep = round_up(samples, 8), groups = pixels / 4;
    int e_size = most_of(pixels * most_of(deep, pixels), deep * (count + 2) / 2);
    int d_size = most_of(most_of(side * pixels, groups * deep), deep * count / 2);
    REAL *ex = shared[0].at, *ey = ex + pixels * deep, *image = ex, *dplaced = ex + side * side, *dcurve = ex;
    REAL *dg = ex + 2 * e_size, *turned = dg + side * pixels, *columns = dg, *basis = dg, *curve = dg + 2 * d_size;
    REAL* moved = curve + 2 * deep;
    const REAL *m = matrix + 6 * stroke, *z = points + stroke * 2 * count;
    REAL sums[SUMS] = {};

    // The curve, and the image-space gradient as far as each pixel has its own.
    for (int k = threadIdx.x; k < 2 * count; k += THREADS) moved[k] = moved_point(z, m, k, warped);
    REAL steep = (REAL)1 / (most[stroke] * slope);
    for (int p = threadIdx.x; p < side * side; p += THREADS) {
        REAL t = r[first + p];
        dplaced[p] = dr[first + p] * ((REAL)1 - t * t) * steep;
        image[p] = raw[first + p];
        if (!warped) sums[6] += dplaced[p] * image[p];
    }
    __syncthreads();
    Map map(m, side);
    bernstein(basis, choose, count, samples);
    if (warped) {
        for (Pixel pixel(side); pixel.inside(); pixel.next())
            map_slopes(sums, map, image, side, dplaced[pixel.at], pixel.i, pixel.j);
    }
    __syncthreads();
    sample_curve(curve, deep, basis, moved, count, samples);
    __syncthreads();  // the basis is in the place of dG

    Gather gather(map, side);
    for (Pixel pixel(side); pixel.inside(); pixel.next()) {
        REAL d = dplaced[pixel.at];
        // Where there is next to no ink, no sample of the curve feels the gradient.
        if (warped) d = image[pixel.at] > (REAL)1e-25 ? gather.at(map, dplaced, side, pixel.i, pixel.j) : (REAL)0;
        dg[pixel.i * pixels + place_in_row(pixel.j, groups)] = d;
        turned[pixel.j * pixels + place_in_row(pixel.i, groups)] = d;
    }
    for (int k = threadIdx.x; k < side * (pixels - side); k += THREADS) {
        int at = k % side * pixels + place_in_row(side + k / side, groups);
        dg[at] = turned[at] = 0;
    }
    __syncthreads();

    // A warp per pixel of Ex and Ey.
    REAL square = sigma * sigma, scale = -HALF_PER_LN2 / square;
    for (int row = warp; row < 2 * pixels; row += WARPS) {
        int axis = row >= pixels;
        REAL position = place(row - axis * pixels, limit, inverse);
        for (int n = lane; n < deep; n += WARP) ex[row * deep + n] = gaussian(curve[axis * deep + n] - position, scale);
    }
    __syncthreads();

    // A thread has 8 samples and 4 pixels of d Ex = Ey·dG or of d Ey = Ex·dG^T, from the pixels that its samples reach.
    int each = groups * (deep / 8), task = threadIdx.x, axis = task >= each;
    task -= axis * each;
    int column = task % groups, sample = task / groups * 8;
    REAL slopes[8] = {}, spread = 0;
    if (task < each) {
        const REAL* across = curve + (axis ? 0 : deep) + sample;
        REAL low = across[0], high = low;
        for (int s = 1; s < 8 && sample + s < samples; s++) low = smaller(low, across[s]), high = larger(high, across[s]);
        int from = (int)smaller(larger((low - REACH * fabs(sigma)) * limit, (REAL)0), limit);
        int last = (int)larger(smaller((high + REACH * fabs(sigma)) * limit + (REAL)1, limit), (REAL)0);
        const REAL *other = (axis ? ex : ey) + from * deep + sample, *d = (axis ? turned : dg) + from * pixels + 4 * column;
        REAL de[8][4] = {};
#pragma unroll 2
        for (int k = from; k < last; k++, other += deep, d += pixels) {
            REAL a[8], b[4];
            load4(a, other);
            load4(a + 4, other + 4);
            load4(b, d);
#pragma unroll
            for (int s = 0; s < 8; s++)
#pragma unroll
                for (int c = 0; c < 4; c++) de[s][c] += a[s] * b[c];
        }
        const REAL* own = (axis ? ey : ex) + column * deep + sample;
        REAL at[8];
        load4(at, curve + axis * deep + sample);
        load4(at + 4, curve + axis * deep + sample + 4);
#pragma unroll
        for (int c = 0; c < 4; c++, own += groups * deep) {
            REAL e[8], position = place(column + c * groups, limit, inverse);
            load4(e, own);
            load4(e + 4, own + 4);
#pragma unroll
            for (int s = 0; s < 8; s++) {
                REAL d = at[s] - position, w = e[s] * de[s][c] * d;
                slopes[s] += w;
                spread += w * d;
            }
        }
    }
    __syncthreads();  // dG gives way to the sums over columns, one row of samples per group of pixels
    if ((int)threadIdx.x < 2 * each) {
        store4(columns + (axis * groups + column) * deep + sample, slopes);
        store4(columns + (axis * groups + column) * deep + sample + 4, slopes + 4);
    }
    sums[7] = spread;
#pragma unroll
    for (int k = 0; k < SUMS; k++) {
        REAL sum = warp_sum(sums[k]);
        if (lane == 0) parts[k][warp] = sum;
    }
    __syncthreads();
    // The basis again, behind the gradient of the curve and in the place of the Gaussians.
    basis = dcurve + 2 * deep;
    bernstein(basis, choose, count, samples);
    for (int k = threadIdx.x; k < 2 * samples; k += THREADS) {
        int which = k >= samples, n = k - which * samples;
        REAL sum = 0;
        for (int group = 0; group < groups; group++) sum += columns[(which * groups + group) * deep + n];
        dcurve[which * deep + n] = -sum / square;
    }
    __syncthreads();
    for (int k = warp; k < 2 * count; k += WARPS) {
        REAL sum = 0;
        for (int n = lane; n < samples; n += WARP) sum += basis[n * count + k / 2] * dcurve[k % 2 * deep + n];
        sum = warp_sum(sum);
        if (lane == 0) dmoved[k] = sum;
    }
    __syncthreads();

    for (int k = threadIdx.x; dpoints && k < 2 * count; k += THREADS) {
        REAL d = dmoved[k];
        if (!warped) d = m[k % 2] * dmoved[k & ~1] + m[3 + k % 2] * dmoved[k | 1];
        put(dpoints, stroke * 2 * count + k, d, add_dpoints);
    }
    int k = (int)threadIdx.x - 2 * WARP;  // not the threads that are busy above
    if (k < 0 || k >= SUMS) return;
    REAL total = 0;
    for (int w = 0; w < WARPS; w++) total += parts[k][w];
    if (k == 6 && dpen) put(dpen, 2 * stroke + 1, -total / slope, add_dpen);
    if (k == 7 && dpen) put(dpen, 2 * stroke, total / (square * sigma), add_dpen);
    if (k >= 6 || !dmatrix) return;
    for (int j = 0; !warped && j < count; j++) {
        REAL d = (REAL)0.5 * dmoved[2 * j + k / 3], at = k % 3 == 2 ? (REAL)1 : z[2 * j + k % 3] + z[2 * j + k % 3] - (REAL)1;
        total += d * at;
    }
    put(dmatrix, 6 * stroke + k, total, add_dmatrix);
}

// ---- Images of any size -------------------------------------------------------------------------------------------------

// y = tanh(placed/(most·slope)) from the raw ink. One block per stroke.
KERNEL __launch_bounds__(256) render_naive_fwd(const REAL* __restrict__ matrix, const REAL* __restrict__ pen, const REAL* __restrict__ on,
                                               const REAL* __restrict__ raw, REAL* y, REAL* __restrict__ most, int side, int warped,
                                               REAL floor) {
    long long stroke = blockIdx.x, first = stroke * side * side;
    bool is_on = on[stroke] != (REAL)0;
    Map map(matrix + 6 * stroke, side);
    REAL peak = 0;
    for (Pixel pixel(side); pixel.inside(); pixel.next()) {
        REAL value = 0;
        if (is_on) value = warped ? Patch(map, raw + first, side, pixel.i, pixel.j).value() : raw[first + pixel.at];
        peak = larger(value, peak);
        y[first + pixel.at] = value;
    }
    if (!is_on) return;
    peak = block_max(peak);
    REAL divisor = peak >= floor ? peak : (REAL)1, steep = (REAL)1 / (divisor * pen[2 * stroke + 1]);
    for (int p = threadIdx.x; p < side * side; p += blockDim.x) y[first + p] = tanh(y[first + p] * steep);
    if (threadIdx.x == 0) most[stroke] = divisor;
}

// dink from dr, and the gradients of slope and, where the image is warped, matrix. `dplaced` is room for an image. One block per stroke;
// dink of a stroke that is off is not written.
KERNEL __launch_bounds__(256, 2) render_naive_bwd(const REAL* __restrict__ matrix, const REAL* __restrict__ pen, const REAL* __restrict__ on,
                                               const REAL* __restrict__ r, const REAL* __restrict__ raw, const REAL* __restrict__ most,
                                               const REAL* __restrict__ dr, REAL* dplaced, REAL* __restrict__ dink, REAL* dmatrix,
                                               int add_dmatrix, REAL* dpen, int add_dpen, int side, int warped) {
    long long stroke = blockIdx.x, first = stroke * side * side;
    bool is_on = on[stroke] != (REAL)0;
    REAL slope = pen[2 * stroke + 1], sums[7] = {};
    if (is_on) {
        Map map(matrix + 6 * stroke, side);
        REAL steep = (REAL)1 / (most[stroke] * slope);
        for (Pixel pixel(side); pixel.inside(); pixel.next()) {
            REAL t = r[first + pixel.at], d = dr[first + pixel.at] * ((REAL)1 - t * t) * steep;
            dplaced[first + pixel.at] = d;
            if (warped) map_slopes(sums, map, raw + first, side, d, pixel.i, pixel.j);
            else sums[6] += d * raw[first + pixel.at];
        }
        __syncthreads();
        Gather gather(map, side);
        for (Pixel pixel(side); pixel.inside(); pixel.next()) {
            dink[first + pixel.at] = warped ? gather.at(map, dplaced + first, side, pixel.i, pixel.j) : dplaced[first + pixel.at];
        }
    }
    for (int k = 0; k < 7; k++) {
        REAL sum = block_sum(sums[k]);
        if (threadIdx.x != 0) continue;
        if (k < 6 && warped && dmatrix) put(dmatrix, 6 * stroke + k, sum, add_dmatrix);
        if (k == 6 && dpen) put(dpen, 2 * stroke + 1, is_on ? -sum / slope : (REAL)0, add_dpen);
    }
}
