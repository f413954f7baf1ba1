// Images seen through affine maps: src/ops/stn.rs.

// One map, for images [h, w]; step is the distance of two columns (rows) in the units of the map.
struct View {
    const REAL* m;
    int h, w;
    REAL step_x, step_y;

    __device__ REAL half_w() const { return (REAL)(w - 1) * (REAL)0.5; }
    __device__ REAL half_h() const { return (REAL)(h - 1) * (REAL)0.5; }
    __device__ REAL x(int column) const { return (REAL)column * step_x - (REAL)1; }
    __device__ REAL y(int row) const { return (REAL)row * step_y - (REAL)1; }
};

// Where a sample is taken: between pixel (top, left) and its neighbours to the right and below. A sample beyond the image is moved
// to where all its neighbours are outside.
struct Place {
    int top, left;
    REAL right, below;
};

__device__ __forceinline__ Place place(const View& v, int row, int column) {
    REAL x = v.m[0] * ((REAL)column - v.half_w()) + v.half_w() * (v.m[1] * v.y(row) + v.m[2] + (REAL)1);
    REAL y = v.m[4] * ((REAL)row - v.half_h()) + v.half_h() * (v.m[3] * v.x(column) + v.m[5] + (REAL)1);
    x = x < (REAL)-2 ? (REAL)-2 : x > (REAL)v.w ? (REAL)v.w : x;
    y = y < (REAL)-2 ? (REAL)-2 : y > (REAL)v.h ? (REAL)v.h : y;
    REAL left = floor(x), top = floor(y);
    return {top == top ? (int)top : -2, left == left ? (int)left : -2, x - left, y - top};
}

// The neighbours: above left, above right, below left, below right. Outside of the image they are 0.
__device__ __forceinline__ void neighbours(const View& v, const REAL* image, const Place& p, REAL out[4]) {
    for (int k = 0; k < 4; k++) {
        int row = p.top + k / 2, column = p.left + k % 2;
        bool inside = (unsigned)row < (unsigned)v.h && (unsigned)column < (unsigned)v.w;
        out[k] = inside ? image[(long long)row * v.w + column] : (REAL)0;
    }
}

// `parts` blocks per image.
KERNEL __launch_bounds__(256) stn_fwd(const REAL* __restrict__ image, const REAL* __restrict__ matrix,
                                      const REAL* __restrict__ live, REAL* __restrict__ y, int parts, int h, int w, REAL step_x,
                                      REAL step_y) {
    long long i = blockIdx.x / parts;
    int part = blockIdx.x % parts, pixels = h * w;
    bool dead = live && live[i] == (REAL)0;
    View v = {matrix + 6 * i, h, w, step_x, step_y};
    image += i * pixels;
    y += i * pixels;
    for (int at = part * blockDim.x + threadIdx.x; at < pixels; at += parts * blockDim.x) {
        if (dead) {
            y[at] = 0;
            continue;
        }
        Place p = place(v, at / w, at % w);
        REAL n[4];
        neighbours(v, image, p, n);
        REAL above = (n[1] - n[0]) * p.right + n[0], below = (n[3] - n[2]) * p.right + n[2];
        y[at] = (below - above) * p.below + above;
    }
}

// The gradient of one matrix, by one block.
__device__ __forceinline__ void matrix_gradient(const View& v, const REAL* image, const REAL* dy, REAL* dm, int add) {
    REAL sum[6] = {};
    for (int at = threadIdx.x; at < v.h * v.w; at += blockDim.x) {
        int row = at / v.w, column = at - row * v.w;
        Place p = place(v, row, column);
        REAL n[4], x = v.x(column), y = v.y(row);
        neighbours(v, image, p, n);
        REAL across = n[1] - n[0], down = n[2] - n[0], twist = n[3] - n[2] - across;
        REAL to_column = dy[at] * (twist * p.below + across), to_row = dy[at] * (twist * p.right + down);
        sum[0] += to_column * x, sum[1] += to_column * y, sum[2] += to_column;
        sum[3] += to_row * x, sum[4] += to_row * y, sum[5] += to_row;
    }
    for (int k = 0; k < 6; k++) {
        REAL total = block_sum(sum[k]);
        if (threadIdx.x == 0) put(dm, k, (k < 3 ? v.half_w() : v.half_h()) * total, add);
    }
}

// The map backwards: which samples may touch a pixel, and which pixels may be touched at all. Both are supersets.
struct Inverse {
    double column[3], row[3];     // the sample at a pixel: column[0]·(its column) + column[1]·(its row) + column[2]; likewise
    double beyond[2];             // how far from there samples may lie, in columns and rows
    int top, left, rows, columns;  // the touched pixels
    int lanes;                    // threads that share a pixel: many samples per pixel go with few pixels
};

__device__ inline double least(double a, double b) { return a < b ? a : b; }
__device__ inline double most(double a, double b) { return a > b ? a : b; }

__device__ inline Inverse inverse_of(const View& v) {
    // Target column: a·column + b·row + c. Target row: d·column + e·row + f.
    double half_w = v.half_w(), half_h = v.half_h(), w = v.w - 1, h = v.h - 1;
    double a = v.m[0], b = half_w * v.m[1] * v.step_y, c = half_w * ((double)v.m[2] + 1 - v.m[1] - a);
    double e = v.m[4], d = half_h * v.m[3] * v.step_x, f = half_h * ((double)v.m[5] + 1 - v.m[3] - e);
    double size = fabs(a) * w + fabs(b) * h + fabs(c) + fabs(d) * w + fabs(e) * h + fabs(f);
    double reach = 1.01 + 1e-5 * size;  // a sample touches pixels nearer than 1; the rest is for rounding
    Inverse i = {};
    i.lanes = 1;
    if (!(size < 1e30)) return i;  // not finite
    double left = c + least(0, a * w) + least(0, b * h) - reach, right = c + most(0, a * w) + most(0, b * h) + reach;
    double top = f + least(0, d * w) + least(0, e * h) - reach, bottom = f + most(0, d * w) + most(0, e * h) + reach;
    if (left > w || top > h || right < 0 || bottom < 0) return i;
    i.left = (int)ceil(most(left, 0)), i.columns = (int)floor(least(right, w)) - i.left + 1;
    i.top = (int)ceil(most(top, 0)), i.rows = (int)floor(least(bottom, h)) - i.top + 1;

    double det = a * e - b * d;
    if (fabs(det) > 1e-9 * (fabs(a * e) + fabs(b * d))) {
        i.column[0] = e / det, i.column[1] = -b / det, i.column[2] = (b * f - e * c) / det;
        i.row[0] = -d / det, i.row[1] = a / det, i.row[2] = (d * c - a * f) / det;
        i.beyond[0] = reach * (fabs(e) + fabs(b)) / fabs(det), i.beyond[1] = reach * (fabs(a) + fabs(d)) / fabs(det);
    } else {  // a line or a point: any sample may touch
        i.beyond[0] = v.w, i.beyond[1] = v.h;
    }
    double samples = least(2 * i.beyond[0] + 1, v.w) * least(2 * i.beyond[1] + 1, v.h);
    i.lanes = samples <= 24 ? 1 : samples <= 160 ? 8 : WARP;
    return i;
}

// The whole numbers from 0 to n - 1 that are at least, or at most, x.
__device__ __forceinline__ int first_of(double x, int n) { return (int)ceil(least(most(x, 0), n)); }
__device__ __forceinline__ int last_of(double x, int n) { return (int)floor(most(least(x, n - 1), -1)); }

// The gradient of one image, by `parts` blocks: every pixel collects from the samples that it contributed to, in a fixed order.
__device__ __forceinline__ void image_gradient(const View& v, const REAL* dy, REAL* dimage, int add, int part, int parts) {
    __shared__ Inverse inverse;
    if (threadIdx.x == 0) inverse = inverse_of(v);
    __syncthreads();
    int top = inverse.top, left = inverse.left, rows = inverse.rows, columns = inverse.columns, lanes = inverse.lanes;
    if (!add) {
        for (int at = part * blockDim.x + threadIdx.x; at < v.h * v.w; at += parts * blockDim.x) {
            int row = at / v.w, column = at - row * v.w;
            bool touched = (unsigned)(row - top) < (unsigned)rows && (unsigned)(column - left) < (unsigned)columns;
            if (!touched) dimage[at] = 0;
        }
    }
    int together = blockDim.x / lanes, lane = threadIdx.x % lanes;
    for (int base = part * together; base < rows * columns; base += parts * together) {
        int pixel = base + threadIdx.x / lanes;
        bool valid = pixel < rows * columns;
        int row = top + pixel / columns, column = left + pixel % columns;
        double x = inverse.column[0] * column + inverse.column[1] * row + inverse.column[2];
        double y = inverse.row[0] * column + inverse.row[1] * row + inverse.row[2];
        int from_x = first_of(x - inverse.beyond[0], v.w), to_x = last_of(x + inverse.beyond[0], v.w);
        int from_y = first_of(y - inverse.beyond[1], v.h), to_y = last_of(y + inverse.beyond[1], v.h);
        REAL sum = 0;
        if (valid && from_x <= to_x && from_y <= to_y) {
            int wide = to_x - from_x + 1, down = lanes / wide, across = lanes % wide;
            int j = from_x + lane % wide, i = from_y + lane / wide;
            while (i <= to_y) {
                Place p = place(v, i, j);
                int dx = column - p.left, dy_row = row - p.top;
                if ((unsigned)dx < 2 && (unsigned)dy_row < 2) {
                    REAL g = dy[(long long)i * v.w + j], under = g * p.below, part_of_row = dy_row ? under : g - under;
                    REAL to_right = part_of_row * p.right;
                    sum += dx ? to_right : part_of_row - to_right;
                }
                i += down, j += across;
                if (j > to_x) i++, j -= wide;
            }
        }
        for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        if (valid && lane == 0) put(dimage, (long long)row * v.w + column, sum, add);
    }
}

// Per image one block for the matrix, then `parts` for the image (0 if its gradient is not wanted).
KERNEL __launch_bounds__(512) stn_bwd(const REAL* __restrict__ image, const REAL* __restrict__ matrix,
                                      const REAL* __restrict__ live, const REAL* __restrict__ dy, REAL* __restrict__ dimage,
                                      int add_image, REAL* __restrict__ dmatrix, int add_matrix, int parts, int h, int w,
                                      REAL step_x, REAL step_y) {
    long long i = blockIdx.x / (parts + 1);
    int part = (int)(blockIdx.x % (parts + 1)) - 1, pixels = h * w;
    bool dead = live && live[i] == (REAL)0;
    View v = {matrix + 6 * i, h, w, step_x, step_y};
    image += i * pixels;
    dy += i * pixels;
    if (part < 0) {
        if (!dmatrix) return;
        REAL* dm = dmatrix + 6 * i;
        if (!dead) {
            matrix_gradient(v, image, dy, dm, add_matrix);
        } else if (!add_matrix && threadIdx.x < 6) {
            dm[threadIdx.x] = 0;
        }
    } else if (!dead) {
        image_gradient(v, dy, dimage + i * pixels, add_image, part, parts);
    } else if (!add_image) {
        for (int at = part * blockDim.x + threadIdx.x; at < pixels; at += parts * blockDim.x) dimage[i * pixels + at] = 0;
    }
}

// The gradient of the images by plain search, for DOOD_CUDA_NAIVE=1: every pixel looks at all samples of its image.
KERNEL __launch_bounds__(256) stn_naive_bwd(const REAL* __restrict__ matrix, const REAL* __restrict__ live, const REAL* __restrict__ dy,
                                            REAL* __restrict__ dimage, int add_image, int images, int h, int w, REAL step_x,
                                            REAL step_y) {
    long long pixels = (long long)h * w;
    for (long long at = first_element(); at < images * pixels; at += element_stride()) {
        long long i = at / pixels;
        int row = (int)(at % pixels / w), column = (int)(at % w);
        View v = {matrix + 6 * i, h, w, step_x, step_y};
        REAL sum = 0;
        for (int sample = 0; sample < pixels && !(live && live[i] == (REAL)0); sample++) {
            Place p = place(v, sample / w, sample % w);
            if (row != p.top && row != p.top + 1 || column != p.left && column != p.left + 1) continue;
            REAL of_row = row == p.top ? (REAL)1 - p.below : p.below, of_column = column == p.left ? (REAL)1 - p.right : p.right;
            sum += dy[i * pixels + sample] * of_row * of_column;
        }
        put(dimage, at, sum, add_image);
    }
}
