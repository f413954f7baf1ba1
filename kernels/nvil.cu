// The learning signal of the on/off decisions and its centring, in one block.

// y = (raw - c)/max(1, sqrt v), with running mean c and variance v of the unmasked values updated before use. The first time
// (`first`) the old ones are not read but taken from this batch. Sums in double precision.
__device__ void normalise_block(
    const REAL* raw, const REAL* mask, const REAL* running, REAL* y, REAL* updated, int n, int first) {
    double sum = 0, count = 0, squares = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        sum += (double)mask[i] * raw[i];
        count += mask[i];
    }
    count = block_sum(count);
    double mean = block_sum(sum) / count;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += mask[i] * ((raw[i] - mean) * (raw[i] - mean));
    double var = block_sum(squares) / count;
    double c = DECAY * (first ? mean : (double)running[0]) + (1.0 - DECAY) * mean;
    double v = DECAY * (first ? var : (double)running[1]) + (1.0 - DECAY) * var;
    REAL scale = (REAL)(1.0 / (v > 1.0 ? sqrt(v) : 1.0));
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = (raw[i] - (REAL)c) * scale;
    if (threadIdx.x == 0) {
        updated[0] = (REAL)c;
        updated[1] = (REAL)v;
    }
}

KERNEL __launch_bounds__(1024) normalise(
    const REAL* __restrict__ raw, const REAL* __restrict__ mask, const REAL* __restrict__ running, REAL* __restrict__ y,
    REAL* __restrict__ updated, int n, int first) {
    normalise_block(raw, mask, running, y, updated, n, first);
}

// signal = mask·(sum of kl from this step on - log_likelihood/beta), raw = signal - baseline, and raw normalised. [steps, b] each.
KERNEL __launch_bounds__(1024) advantage(
    const REAL* __restrict__ kl, const REAL* __restrict__ log_likelihood, const REAL* __restrict__ mask,
    const REAL* __restrict__ baseline, const REAL* __restrict__ running, REAL* __restrict__ signal, REAL* raw,
    REAL* __restrict__ normalised, REAL* __restrict__ updated, int steps, int b, REAL beta, int first) {
    for (int j = threadIdx.x; j < b; j += blockDim.x) {
        REAL rest = -log_likelihood[j] / beta;
        for (int i = (steps - 1) * b + j; i >= 0; i -= b) {
            rest += kl[i];
            signal[i] = mask[i] * rest;
            raw[i] = signal[i] - baseline[i];
        }
    }
    __syncthreads();
    normalise_block(raw, mask, running, normalised, updated, steps * b, first);
}
