// Bezier curves: the sum of the control points weighted by the Bernstein polynomials, which are computed in double precision and
// rounded once, as on the CPU.

__device__ __forceinline__ double power(double x, int n) {
    double y = 1;
    for (int k = 0; k < n; k++) y *= x;
    return y;
}

// points [N, J, 2] -> curve [N, S, 2]
KERNEL __launch_bounds__(256) bezier_fwd(const REAL* __restrict__ points, REAL* __restrict__ curve, int n, int count, int samples) {
    for (long long k = first_element(); k < (long long)n * samples; k += element_stride()) {
        const REAL* z = points + k / samples * 2 * count;
        double u = (double)(k % samples) / (samples - 1), choose = 1;
        REAL x = 0, y = 0;
        for (int j = 0, degree = count - 1; j < count; j++) {
            REAL weight = (REAL)(choose * power(1 - u, degree - j) * power(u, j));
            x += weight * z[2 * j];
            y += weight * z[2 * j + 1];
            choose = choose * (degree - j) / (j + 1);
        }
        curve[2 * k] = x;
        curve[2 * k + 1] = y;
    }
}

// One block per curve.
KERNEL __launch_bounds__(256) bezier_bwd(const REAL* __restrict__ dcurve, REAL* dpoints, int add_dpoints, int count, int samples) {
    const REAL* d = dcurve + (long long)blockIdx.x * 2 * samples;
    double choose = 1;
    for (int j = 0, degree = count - 1; j < count; j++) {
        REAL x = 0, y = 0;
        for (int k = threadIdx.x; k < samples; k += blockDim.x) {
            double u = (double)k / (samples - 1);
            REAL weight = (REAL)(choose * power(1 - u, degree - j) * power(u, j));
            x += weight * d[2 * k];
            y += weight * d[2 * k + 1];
        }
        x = block_sum(x);
        y = block_sum(y);
        if (dpoints && threadIdx.x == 0) {
            long long to = ((long long)blockIdx.x * count + j) * 2;
            put(dpoints, to, x, add_dpoints);
            put(dpoints, to + 1, y, add_dpoints);
        }
        choose = choose * (degree - j) / (j + 1);
    }
}
