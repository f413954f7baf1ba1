// Control points moved by an affine map: p = 2z - 1, q = A·(p, 1), z' = q/2 + 1/2.

// points [N, J, 2], matrix [N, 6] -> moved [N, J, 2]
KERNEL __launch_bounds__(256) place_points_fwd(const REAL* __restrict__ points, const REAL* __restrict__ matrix, REAL* __restrict__ moved,
                                               int n, int count) {
    const REAL half = (REAL)0.5;
    for (long long k = first_element(); k < (long long)n * count; k += element_stride()) {
        const REAL* m = matrix + k / count * 6;
        REAL x = points[2 * k] + points[2 * k] - (REAL)1, y = points[2 * k + 1] + points[2 * k + 1] - (REAL)1;
        moved[2 * k] = half * (m[0] * x + m[1] * y + m[2]) + half;
        moved[2 * k + 1] = half * (m[3] * x + m[4] * y + m[5]) + half;
    }
}

// One warp per row.
KERNEL __launch_bounds__(32) place_points_bwd(const REAL* __restrict__ points, const REAL* __restrict__ matrix,
                                              const REAL* __restrict__ dmoved, REAL* dpoints, int add_dpoints, REAL* dmatrix,
                                              int add_dmatrix, int count) {
    const REAL* m = matrix + (long long)blockIdx.x * 6;
    const REAL half = (REAL)0.5;
    REAL sums[6] = {};
    for (int j = threadIdx.x; j < count; j += WARP) {
        long long at = ((long long)blockIdx.x * count + j) * 2;
        REAL x = points[at] + points[at] - (REAL)1, y = points[at + 1] + points[at + 1] - (REAL)1;
        REAL d[2] = {dmoved[at], dmoved[at + 1]};
        if (dpoints) {
            put(dpoints, at, m[0] * d[0] + m[3] * d[1], add_dpoints);
            put(dpoints, at + 1, m[1] * d[0] + m[4] * d[1], add_dpoints);
        }
        for (int r = 0; r < 2; r++) {
            REAL g = half * d[r];
            sums[3 * r] += g * x;
            sums[3 * r + 1] += g * y;
            sums[3 * r + 2] += g;
        }
    }
    if (!dmatrix) return;
    for (int k = 0; k < 6; k++) {
        REAL sum = warp_sum(sums[k]);
        if (threadIdx.x == 0) put(dmatrix, (long long)blockIdx.x * 6 + k, sum, add_dmatrix);
    }
}
