// What an update reports, and whether it may change anything.

// part[block] = the sum of squares of its share of x, in double precision.
KERNEL __launch_bounds__(256) square_sums(const REAL* x, REAL* part, int n) {
    double sum = 0;
    for (long long i = first_element(); i < n; i += element_stride()) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) part[blockIdx.x] = (REAL)sum;
}

// The totals of a row of a table, ring[(update mod rows)·(totals + 3) ..]: the sums of the rows of x [totals, n]. One block for each.
KERNEL __launch_bounds__(256) totals(const REAL* x, REAL* ring, int totals, int n, u64 update, const unsigned* clock, unsigned rows) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += (double)x[(long long)blockIdx.x * n + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) ring[(clock_step(update, clock) % rows) * (totals + 3) + blockIdx.x] = (REAL)sum;
}

// Behind the totals: the loss [1], the norm of the gradient from its `squares` [parts], and whether the step may change anything:
// healthy [1] becomes 0 with the first loss or gradient that is not finite, and stays 0. One block.
KERNEL __launch_bounds__(256) verdict(const REAL* loss, const REAL* squares, REAL* ring, REAL* healthy, int parts, int totals, u64 update,
                                      const unsigned* clock, unsigned rows) {
    double squared = 0;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) squared += (double)squares[i];
    squared = block_sum(squared);
    if (threadIdx.x != 0) return;
    REAL* row = ring + (clock_step(update, clock) % rows) * (totals + 3) + totals;
    row[0] = loss[0];
    row[1] = (REAL)sqrt(squared);
    if (!isfinite((double)loss[0]) || !isfinite(squared)) healthy[0] = (REAL)0;
    row[2] = healthy[0];
}

// kept = updated, if the step may change anything.
KERNEL __launch_bounds__(32) keep(const REAL* updated, const REAL* healthy, REAL* kept, int n) {
    if (healthy[0] == (REAL)0) return;
    for (int i = threadIdx.x; i < n; i += blockDim.x) kept[i] = updated[i];
}
