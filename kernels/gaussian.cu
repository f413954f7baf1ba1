// Gaussians whose first two coordinates are coupled by one entry of the Cholesky factor; the formulas are in src/ops/gaussian.rs.
// A row of packed parameters holds means [groups, d], stds [groups, d], cors [groups].

// Log density, summed over the groups, of rows that are `live` (all if null): one warp per row, one lane per group.
KERNEL __launch_bounds__(128) gaussian_logpdf_fwd(
    const REAL* __restrict__ z, const REAL* __restrict__ p, const REAL* __restrict__ live, REAL* __restrict__ y, int n, int groups,
    int d, REAL constant) {
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP, size = groups * d;
    if (row >= n) return;
    if (live && live[row] == (REAL)0) {
        if (lane == 0) y[row] = 0;
        return;
    }
    z += (long long)row * size;
    p += (long long)row * (2 * size + groups);
    REAL log_density = 0;
    for (int g = lane; g < groups; g += WARP) {
        const REAL *x = z + g * d, *mean = p + g * d, *std = mean + size;
        REAL e0 = (x[0] - mean[0]) / std[0];
        REAL f = (x[1] - mean[1] - p[2 * size + g] * e0) / std[1];
        REAL square = e0 * e0 + f * f;
        // Two stds are at least 1e-18 together: one logarithm does for both.
        log_density -= log(std[0] * std[1]);
        for (int i = 2; i < d; i += 2) {
            REAL e = (x[i] - mean[i]) / std[i], volume = std[i];
            square += e * e;
            if (i + 1 < d) {
                e = (x[i + 1] - mean[i + 1]) / std[i + 1];
                square += e * e;
                volume *= std[i + 1];
            }
            log_density -= log(volume);
        }
        log_density -= (REAL)0.5 * square;
    }
    log_density = warp_sum(log_density);
    if (lane == 0) y[row] = constant + log_density;
}

// One thread per group of a row.
KERNEL __launch_bounds__(256) gaussian_logpdf_bwd(
    const REAL* __restrict__ z, const REAL* __restrict__ p, const REAL* __restrict__ live, const REAL* __restrict__ dy,
    REAL* __restrict__ dz, int add_dz, REAL* __restrict__ dp, int add_dp, int n, int groups, int d) {
    int size = groups * d, packed = 2 * size + groups;
#pragma unroll 1
    for (long long job = first_element(); job < n; job += element_stride()) {
        int row = (int)job / groups, g = (int)job % groups;
        long long at_z = (long long)row * size + g * d;
        long long at_mean = (long long)row * packed + g * d, at_std = at_mean + size, at_cor = (long long)row * packed + 2 * size + g;
        if (live && live[row] == (REAL)0) {
            for (int i = 0; i < d; i++) {
                if (dz && !add_dz) dz[at_z + i] = 0;
                if (dp && !add_dp) dp[at_mean + i] = dp[at_std + i] = 0;
            }
            if (dp && !add_dp) dp[at_cor] = 0;
            continue;
        }
        REAL weight = dy[row], cor = p[at_cor];
        REAL r0 = (REAL)1 / p[at_std], r1 = (REAL)1 / p[at_std + 1];
        REAL e0 = (z[at_z] - p[at_mean]) * r0;
        REAL f = (z[at_z + 1] - p[at_mean + 1] - cor * e0) * r1;
        REAL h = e0 - cor * f * r1;
        if (dz) {
            put(dz, at_z, -weight * h * r0, add_dz);
            put(dz, at_z + 1, -weight * f * r1, add_dz);
        }
        if (dp) {
            put(dp, at_mean, weight * h * r0, add_dp);
            put(dp, at_mean + 1, weight * f * r1, add_dp);
            put(dp, at_std, weight * (h * e0 - (REAL)1) * r0, add_dp);
            put(dp, at_std + 1, weight * (f * f - (REAL)1) * r1, add_dp);
            put(dp, at_cor, weight * f * e0 * r1, add_dp);
        }
#pragma unroll 1
        for (int i = 2; i < d; i++) {
            REAL r = (REAL)1 / p[at_std + i];
            REAL e = (z[at_z + i] - p[at_mean + i]) * r;
            if (dz) put(dz, at_z + i, -weight * e * r, add_dz);
            if (dp) {
                put(dp, at_mean + i, weight * e * r, add_dp);
                put(dp, at_std + i, weight * (e * e - (REAL)1) * r, add_dp);
            }
        }
    }
}

// z = mean + L·eps: one thread per coordinate.
KERNEL __launch_bounds__(256) gaussian_sample_fwd(
    const REAL* __restrict__ p, const REAL* __restrict__ eps, REAL* __restrict__ z, int n, int groups, int d) {
    int size = groups * d;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / size, j = (int)i % size;
        const REAL* q = p + (long long)row * (2 * size + groups);
        REAL x = q[j] + q[size + j] * eps[i];
        if (j % d == 1) x += q[2 * size + j / d] * eps[i - 1];
        z[i] = x;
    }
}

KERNEL __launch_bounds__(256) gaussian_sample_bwd(
    const REAL* __restrict__ eps, const REAL* __restrict__ dz, REAL* __restrict__ dp, int add_dp, int n, int groups, int d) {
    int size = groups * d;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int row = (int)i / size, j = (int)i % size;
        long long at = (long long)row * (2 * size + groups);
        put(dp, at + j, dz[i], add_dp);
        put(dp, at + size + j, dz[i] * eps[i], add_dp);
        if (j % d == 1) put(dp, at + 2 * size + j / d, dz[i] * eps[i - 1], add_dp);
    }
}

// Independent normal columns with fixed parameters: `columns` holds d means, then d stds. One thread per row.
KERNEL __launch_bounds__(256) normal_logpdf_fwd(
    const REAL* __restrict__ z, const REAL* __restrict__ columns, REAL* __restrict__ y, int n, int d, REAL constant) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL square = 0;
        for (int j = 0; j < d; j++) {
            REAL e = (z[i * d + j] - columns[j]) / columns[d + j];
            square += e * e;
        }
        y[i] = constant - (REAL)0.5 * square;
    }
}

KERNEL __launch_bounds__(256) normal_logpdf_bwd(
    const REAL* __restrict__ z, const REAL* __restrict__ columns, const REAL* __restrict__ dy, REAL* __restrict__ dz, int add_dz,
    int n, int d) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        int j = (int)(i % d);
        REAL std = columns[d + j];
        put(dz, i, dy[i / d] * (columns[j] - z[i]) / (std * std), add_dz);
    }
}

KERNEL __launch_bounds__(256) normal_sample(
    const REAL* __restrict__ eps, const REAL* __restrict__ columns, REAL* __restrict__ z, int n, int d) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        int j = (int)(i % d);
        z[i] = columns[j] + columns[d + j] * eps[i];
    }
}
