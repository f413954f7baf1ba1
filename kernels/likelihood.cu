// Log density of images given the canvas, and what is still to be drawn: src/ops/likelihood.rs.

// One block per image. The first also saves 1/v for the backward. A scale lies between `low` and low + span.
KERNEL __launch_bounds__(512) image_logpdf_fwd(const REAL* __restrict__ canvas, const REAL* __restrict__ raw,
                                               const REAL* __restrict__ image, REAL* __restrict__ y, REAL* __restrict__ precision,
                                               int pixels, int laplace, REAL low, REAL span, REAL log_norm) {
    canvas += (long long)blockIdx.x * pixels;
    image += (long long)blockIdx.x * pixels;
    double norm = 0;  // the same for all images, and large
    REAL misfit = 0;
    for (int j = threadIdx.x; j < pixels; j += blockDim.x) {
        REAL r = (REAL)1 / (low + span * sigmoid(raw[j])), e = (image[j] - canvas[j]) * r;
        if (blockIdx.x == 0) precision[j] = r;
        norm += log(r) - log_norm;
        misfit += laplace ? fabs(e) : (REAL)0.5 * e * e;
    }
    norm = block_sum(norm);
    misfit = block_sum(misfit);
    if (threadIdx.x == 0) y[blockIdx.x] = (REAL)norm - misfit;
}

// A block has 32 pixels of all images: lanes are pixels, and each warp has a share of the images.
KERNEL __launch_bounds__(512) image_logpdf_bwd(const REAL* __restrict__ canvas, const REAL* __restrict__ raw,
                                               const REAL* __restrict__ image, const REAL* __restrict__ precision,
                                               const REAL* __restrict__ dy, REAL* __restrict__ dcanvas, int add_canvas,
                                               REAL* __restrict__ draw, int add_raw, int images, int pixels, int laplace, REAL span) {
    __shared__ REAL part[16][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    int wanted = blockIdx.x * WARP + lane, j = wanted < pixels ? wanted : pixels - 1;
    REAL r = precision[j], dv = 0;
    int end = (int)((long long)images * (warp + 1) / warps);
#pragma unroll 4
    for (int i = (int)((long long)images * warp / warps); i < end; i++) {
        long long at = (long long)i * pixels + j;
        REAL e = image[at] - canvas[at], scaled = e * r;
        REAL slope = laplace ? (REAL)(e > (REAL)0) - (REAL)(e < (REAL)0) : scaled;
        if (dcanvas && j == wanted) put(dcanvas, at, dy[i] * r * slope, add_canvas);
        dv += dy[i] * ((laplace ? fabs(scaled) : scaled * scaled) - (REAL)1);
    }
    part[warp][lane] = dv;
    __syncthreads();
    if (warp > 0 || j != wanted || !draw) return;
    dv = 0;
    for (int k = 0; k < warps; k++) dv += part[k][lane];
    put(draw, j, dv * r * span * sigmoid_slope(raw[j]), add_raw);
}

// Σ residual / Σ x of each image, one block each, in double precision. 0/0 is 0, and the quotient is a finite float.
KERNEL __launch_bounds__(256)
    residual_ratio(const REAL* __restrict__ residual, const REAL* __restrict__ x, REAL* __restrict__ y, int pixels) {
    residual += (long long)blockIdx.x * pixels;
    x += (long long)blockIdx.x * pixels;
    double left = 0, all = 0;
    for (int j = threadIdx.x; j < pixels; j += blockDim.x) left += residual[j], all += x[j];
    left = block_sum(left);
    all = block_sum(all);
    if (threadIdx.x > 0) return;
    double ratio = left / all, largest = 3.4028234663852886e38;
    ratio = ratio < -largest ? -largest : ratio > largest ? largest : ratio;
    y[blockIdx.x] = left == 0 && all == 0 ? (REAL)0 : (REAL)ratio;
}
