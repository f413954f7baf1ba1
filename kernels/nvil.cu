// The learning signal of the on/off decisions and its centring, in one block.

// y = (raw - c)/max(1, sqrt v), with running mean c and variance v of the unmasked values updated before use. The first time
// (`first`) the old ones are not read but taken from this batch. Sums in double precision.
__device__ void normalise_by(double mean, double var, const REAL* raw, const REAL* running, REAL* y, REAL* updated, int n, int first) {
    double c = DECAY * (first ? mean : (double)running[0]) + (1.0 - DECAY) * mean;
    double v = DECAY * (first ? var : (double)running[1]) + (1.0 - DECAY) * var;
    REAL scale = (REAL)(1.0 / (v > 1.0 ? sqrt(v) : 1.0));
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = (raw[i] - (REAL)c) * scale;
    if (threadIdx.x == 0) {
        updated[0] = (REAL)c;
        updated[1] = (REAL)v;
    }
}

// How many values are not masked, their mean, and the sum of the squares of their differences to it.
struct Moments {
    double count, mean, squares;

    __device__ Moments(const REAL* raw, const REAL* mask, int n) {
        double sum = 0;
        count = squares = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            sum += (double)mask[i] * raw[i];
            count += mask[i];
        }
        count = block_sum(count);
        mean = block_sum(sum) / count;
        for (int i = threadIdx.x; i < n; i += blockDim.x) squares += mask[i] * ((raw[i] - mean) * (raw[i] - mean));
        squares = block_sum(squares);
    }
};

__device__ void normalise_block(
    const REAL* raw, const REAL* mask, const REAL* running, REAL* y, REAL* updated, int n, int first) {
    Moments m(raw, mask, n);
    normalise_by(m.mean, m.squares / m.count, raw, running, y, updated, n, first);
}

KERNEL __launch_bounds__(1024) normalise(
    const REAL* __restrict__ raw, const REAL* __restrict__ mask, const REAL* __restrict__ running, REAL* __restrict__ y,
    REAL* __restrict__ updated, int n, int first) {
    normalise_block(raw, mask, running, y, updated, n, first);
}

__device__ void signal_block(const REAL* kl, const REAL* log_likelihood, const REAL* mask, const REAL* baseline, REAL* signal, REAL* raw,
                             int steps, int b, REAL beta) {
    for (int j = threadIdx.x; j < b; j += blockDim.x) {
        REAL rest = -log_likelihood[j] / beta;
        for (int i = (steps - 1) * b + j; i >= 0; i -= b) {
            rest += kl[i];
            signal[i] = mask[i] * rest;
            raw[i] = signal[i] - baseline[i];
        }
    }
    __syncthreads();
}

// signal = mask·(sum of kl from this step on - log_likelihood/beta), raw = signal - baseline, and raw normalised. [steps, b] each.
KERNEL __launch_bounds__(1024) advantage(
    const REAL* __restrict__ kl, const REAL* __restrict__ log_likelihood, const REAL* __restrict__ mask,
    const REAL* __restrict__ baseline, const REAL* __restrict__ running, REAL* __restrict__ signal, REAL* raw,
    REAL* __restrict__ normalised, REAL* __restrict__ updated, int steps, int b, REAL beta, int first) {
    signal_block(kl, log_likelihood, mask, baseline, signal, raw, steps, b, beta);
    normalise_block(raw, mask, running, normalised, updated, steps * b, first);
}

// The same for a part of the batch, up to what has to be known of the others: its moments become row `rank` of moments [ranks, 3].
KERNEL __launch_bounds__(1024) advantage_moments(
    const REAL* __restrict__ kl, const REAL* __restrict__ log_likelihood, const REAL* __restrict__ mask,
    const REAL* __restrict__ baseline, REAL* __restrict__ signal, REAL* raw, REAL* __restrict__ moments, int steps, int b, REAL beta,
    int rank) {
    signal_block(kl, log_likelihood, mask, baseline, signal, raw, steps, b, beta);
    Moments m(raw, mask, steps * b);
    if (threadIdx.x != 0) return;
    moments[rank * 3] = (REAL)m.count;
    moments[rank * 3 + 1] = (REAL)m.mean;
    moments[rank * 3 + 2] = (REAL)m.squares;
}

// And from there on, with the moments [ranks, 3] of all parts, put together in the order of ranks.
KERNEL __launch_bounds__(1024) normalise_by_moments(
    const REAL* __restrict__ raw, const REAL* __restrict__ moments, const REAL* __restrict__ running, REAL* __restrict__ y,
    REAL* __restrict__ updated, int n, int ranks, int first) {
    double count = 0, mean = 0, squares = 0;
    for (int r = 0; r < ranks; r++) {
        double more = moments[r * 3], all = count + more, off = moments[r * 3 + 1] - mean;
        mean += off * more / all;
        squares += moments[r * 3 + 2] + off * off * count * more / all;
        count = all;
    }
    normalise_by(mean, squares / count, raw, running, y, updated, n, first);
}
