// What a training step needs beside its ops: constants, sums of gradients, random numbers, the batch, Adam, the report, the clock.

KERNEL __launch_bounds__(256) fill(REAL* y, int n, REAL value) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = value;
}

// sum = x, or sum += x.
KERNEL __launch_bounds__(256) accumulate(const REAL* x, REAL* sum, int add, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) put(sum, i, x[i], add);
}

// ---- Random numbers -----------------------------------------------------------------------------------------------------

// Multiples of 2^-24 in [0, 1).
KERNEL __launch_bounds__(256) uniform(REAL* y, u64 seed, u64 step, const unsigned* clock, unsigned stream, int n) {
    step = clock_step(step, clock);
    for (long long i = first_element(); i < n; i += element_stride()) {
        uint4 words = philox(seed, step, stream, (unsigned)(i / 4));
        unsigned word = i % 4 == 0 ? words.x : i % 4 == 1 ? words.y : i % 4 == 2 ? words.z : words.w;
        y[i] = (REAL)(word >> 8) / (REAL)(1u << 24);
    }
}

// Standard normal numbers (Box and Muller), in double precision and rounded once, as on the CPU.
KERNEL __launch_bounds__(256) normal(REAL* y, u64 seed, u64 step, const unsigned* clock, unsigned stream, int n) {
    step = clock_step(step, clock);
    for (long long i = first_element(); i < n; i += element_stride()) {
        uint4 words = philox(seed, step, stream, (unsigned)(i / 2));
        double a = ((i % 2 ? words.z : words.x) + 0.5) / 4294967296.0;
        double b = ((i % 2 ? words.w : words.y) + 0.5) / 4294967296.0;
        y[i] = (REAL)(sqrt(-2.0 * log(a)) * cos(6.283185307179586 * b));
    }
}

// ---- The batch ----------------------------------------------------------------------------------------------------------

// Image `order[(update mod epoch)·batch + row]` of the data set, as numbers in [0, 1]: y [rows, pixels].
KERNEL __launch_bounds__(256) gather(const unsigned char* images, const unsigned* order, REAL* y, u64 update, const unsigned* clock,
                                     unsigned per_epoch, int batch, int rows, int pixels) {
    long long from = (long long)(clock_step(update, clock) % per_epoch) * batch;
    long long n = (long long)rows * pixels;
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long image = order[from + i / pixels];
        y[i] = (REAL)((float)images[image * pixels + i % pixels] / 255.0f);
    }
}

// ---- The update ---------------------------------------------------------------------------------------------------------

// part[block] = the sum of squares of its share of x, in double precision.
KERNEL __launch_bounds__(256) square_sums(const REAL* x, REAL* part, int n) {
    double sum = 0;
    for (long long i = first_element(); i < n; i += element_stride()) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = (REAL)sum;
}

// Adam: m, v, p of one learning-rate group. `healthy` [1] (or null): nothing is changed where it is 0. `update` counts from 1.
KERNEL __launch_bounds__(256) adam(const REAL* g, const REAL* healthy, REAL* p, REAL* m, REAL* v, int n, REAL rate, u64 update,
                                   const unsigned* clock) {
    if (healthy && healthy[0] == (REAL)0) return;
    double t = (double)clock_step(update, clock);
    REAL correct1 = (REAL)(1.0 / (1.0 - pow(0.9, t))), correct2 = (REAL)(1.0 / (1.0 - pow(0.999, t)));
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL grad = g[i];
        REAL mean = (REAL)0.9 * m[i] + (REAL)(1.0 - 0.9) * grad;
        REAL square = (REAL)0.999 * v[i] + (REAL)(1.0 - 0.999) * (grad * grad);
        m[i] = mean;
        v[i] = square;
        p[i] -= rate * correct1 * mean / (sqrt(square * correct2) + (REAL)1e-8);
    }
}

// One row of the report, ring[(update mod rows)·12 ..], and whether the step may change anything: healthy [1] becomes 0 with the
// first loss or gradient that is not finite, and stays 0. loss [1]; squares [parts] of the gradient; per_image [4, B] and per_step
// [9, T, B] as listed below. One block.
KERNEL __launch_bounds__(256) report(const REAL* loss, const REAL* squares, const REAL* per_image, const REAL* per_step, REAL* ring,
                                     REAL* healthy, int parts, int images, int steps, u64 update, const unsigned* clock, unsigned rows) {
    REAL* row = ring + (clock_step(update, clock) % rows) * 12;
    // per_image [4, B]: elbo, log-likelihood, baseline term, score term.
    for (int k = 0; k < 4; k++) {
        double sum = 0;
        for (int i = threadIdx.x; i < images; i += blockDim.x) sum += (double)per_image[k * images + i];
        sum = block_sum(sum);
        const int place[4] = {1, 2, 8, 9};
        if (threadIdx.x == 0) row[place[k]] = (REAL)(sum / images);
    }
    // per_step [9, T, B]: log q and log p of on/off, layout, stroke; on/off decisions, probabilities, and masks.
    double sums[9];
    for (int k = 0; k < 9; k++) {
        double sum = 0;
        for (int i = threadIdx.x; i < images * steps; i += blockDim.x) sum += (double)per_step[k * images * steps + i];
        sums[k] = block_sum(sum);
    }
    double squared = 0;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) squared += (double)squares[i];
    squared = block_sum(squared);
    if (threadIdx.x != 0) return;
    row[0] = loss[0];
    for (int k = 0; k < 3; k++) row[3 + k] = (REAL)((sums[2 * k] - sums[2 * k + 1]) / images);
    row[6] = (REAL)(sums[6] / images);
    row[7] = (REAL)(sums[7] / sums[8]);
    row[10] = (REAL)sqrt(squared);
    if (!isfinite((double)loss[0]) || !isfinite(squared)) healthy[0] = (REAL)0;
    row[11] = healthy[0];
}

// kept = updated, if the step may change anything.
KERNEL __launch_bounds__(32) keep(const REAL* updated, const REAL* healthy, REAL* kept, int n) {
    if (healthy[0] == (REAL)0) return;
    for (int i = threadIdx.x; i < n; i += blockDim.x) kept[i] = updated[i];
}

// ---- The clock of a captured step ---------------------------------------------------------------------------------------

KERNEL __launch_bounds__(32) set_clock(u64 time, unsigned* clock) {
    if (threadIdx.x == 0) {
        clock[0] = (unsigned)time;
        clock[1] = (unsigned)(time >> 32);
    }
}

KERNEL __launch_bounds__(32) tick(unsigned* clock) {
    if (threadIdx.x == 0 && ++clock[0] == 0) clock[1]++;
}
