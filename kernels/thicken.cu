// Ink made thicker: src/ops/thicken.rs, where the formula stands. One thread per pixel.

// x [.., h, w], n elements in all; the radius falls from the given one to 0 at `updates`.
KERNEL __launch_bounds__(256) thicken(const REAL* __restrict__ x, REAL* __restrict__ y, int n, int h, int w, REAL radius, u64 updates,
                                      u64 update, const unsigned* clock) {
    REAL left = (REAL)1 - (REAL)clock_step(update, clock) / (REAL)updates;
    REAL r = radius * larger(left, (REAL)0);
    int reach = (int)ceil(r);
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)(i / w % h), column = (int)(i % w);
        REAL most = 0;
        for (int dy = -reach; dy <= reach; dy++) {
            for (int dx = -reach; dx <= reach; dx++) {
                if (row + dy < 0 || row + dy >= h || column + dx < 0 || column + dx >= w) continue;
                REAL share = smaller(r + (REAL)1 - sqrt((REAL)(dy * dy + dx * dx)), (REAL)1);
                if (share > (REAL)0) most = larger(most, x[i + (long long)dy * w + dx] * share);
            }
        }
        y[i] = most;
    }
}
