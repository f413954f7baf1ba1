// What an update reports, and whether it may change anything.

// part[block] = the sum of squares of its share of x, in double precision.
KERNEL __launch_bounds__(256) square_sums(const REAL* x, REAL* part, int n) {
    double sum = 0;
    for (long long i = first_element(); i < n; i += element_stride()) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = (REAL)sum;
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
