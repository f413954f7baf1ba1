// Log density of mixtures of coupled Gaussians; the formulas are in src/ops/mixture.rs and gaussian.rs. A block per row, a warp per
// group in turn, a lane per component in turn. A row of packed parameters p holds logits [groups, K], means [groups, K, d], stds
// likewise, cors [groups, K]; of `saved`, per group, the posterior weights of the components and their prior weights.

// The logarithm of no weight at all.
__device__ __forceinline__ REAL log_zero() { return log((REAL)0); }

// Where in a row of parameters those of one group begin.
struct Group {
    int logit, mean, std, cor;
    __device__ Group(int groups, int components, int d, int g) {
        int all = groups * components;
        logit = g * components;
        mean = all + logit * d;
        std = mean + all * d;
        cor = all + 2 * all * d + logit;
    }
};

// The weights that logarithms stand for: in place, this lane's share. Returns the logarithm of their sum.
__device__ REAL softmax(REAL* value, int count, int lane, REAL max) {
    max = warp_max(max);
    REAL sum = 0;
    for (int k = lane; k < count; k += WARP) sum += value[k] = exp(value[k] - max);
    sum = warp_sum(sum);
    REAL scale = (REAL)1 / sum;
    for (int k = lane; k < count; k += WARP) value[k] *= scale;
    return max + log(sum);
}

// Shared memory: 2·K numbers per warp.
KERNEL __launch_bounds__(256) mixture_fwd(
    const REAL* __restrict__ z, const REAL* __restrict__ p, const REAL* __restrict__ live, REAL* __restrict__ y,
    REAL* __restrict__ saved, int groups, int components, int d, REAL constant) {
    extern __shared__ REAL shared[];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    long long row = blockIdx.x;
    if (live && live[row] == (REAL)0) {
        if (threadIdx.x == 0) y[row] = 0;
        return;
    }
    REAL *posterior = shared + 2 * components * warp, *prior = posterior + components;
    REAL log_density = 0;
    for (int g = warp; g < groups; g += warps) {
        const REAL *x = z + (row * groups + g) * d, *q = p + row * groups * components * (2 * d + 2);
        Group at(groups, components, d, g);
        REAL max = log_zero(), max_logit = log_zero();
#pragma unroll 1
        for (int k = lane; k < components; k += WARP) {
            const REAL *mean = q + at.mean + k * d, *std = q + at.std + k * d;
            REAL logit = q[at.logit + k];
            REAL e0 = (x[0] - mean[0]) / std[0];
            REAL f = (x[1] - mean[1] - q[at.cor + k] * e0) / std[1];
            REAL square = e0 * e0 + f * f;
            // Two stds are at least 1e-18 together: one logarithm does for both.
            REAL log_volume = log(std[0] * std[1]);
#pragma unroll 1
            for (int i = 2; i < d; i += 2) {
                REAL e = (x[i] - mean[i]) / std[i], volume = std[i];
                square += e * e;
                if (i + 1 < d) {
                    e = (x[i + 1] - mean[i + 1]) / std[i + 1];
                    square += e * e;
                    volume *= std[i + 1];
                }
                log_volume += log(volume);
            }
            prior[k] = logit;
            posterior[k] = (REAL)-0.5 * square - log_volume + logit;
            max_logit = larger(max_logit, logit);
            max = larger(max, posterior[k]);
        }
        log_density += softmax(posterior, components, lane, max) - softmax(prior, components, lane, max_logit);
        // Only this lane's own values: no barrier.
        REAL* kept = saved + (row * groups + g) * 2 * components;
        for (int k = lane; k < components; k += WARP) {
            kept[k] = posterior[k];
            kept[components + k] = prior[k];
        }
    }
    log_density = block_sum(lane == 0 ? log_density : (REAL)0);
    if (threadIdx.x == 0) y[row] = constant + log_density;
}

// x[0 .. n] = 0, by the whole block.
__device__ void clear(REAL* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = 0;
}

KERNEL __launch_bounds__(256) mixture_bwd(
    const REAL* __restrict__ z, const REAL* __restrict__ p, const REAL* __restrict__ live, const REAL* __restrict__ saved,
    const REAL* __restrict__ dy, REAL* __restrict__ dz, int add_dz, REAL* __restrict__ dp, int add_dp, int groups, int components,
    int d) {
    long long row = blockIdx.x;
    int size = groups * d, packed = groups * components * (2 * d + 2);
    z += row * size;
    p += row * packed;
    saved += row * 2 * groups * components;
    if (dz) dz += row * size;
    if (dp) dp += row * packed;
    if (live && live[row] == (REAL)0) {
        if (dz && !add_dz) clear(dz, size);
        if (dp && !add_dp) clear(dp, packed);
        return;
    }
    REAL scale = dy[row];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int g = warp; g < groups; g += warps) {
        const REAL *posterior = saved + 2 * g * components, *prior = posterior + components;
        Group at(groups, components, d, g);
        REAL toward0 = 0, toward1 = 0, x0 = z[g * d], x1 = z[g * d + 1];
#pragma unroll 1
        for (int k = lane; k < components; k += WARP) {
            int mean = at.mean + k * d, std = at.std + k * d;
            REAL weight = scale * posterior[k], cor = p[at.cor + k];
            REAL r0 = (REAL)1 / p[std], r1 = (REAL)1 / p[std + 1];
            REAL e0 = (x0 - p[mean]) * r0;
            REAL f = (x1 - p[mean + 1] - cor * e0) * r1;
            REAL h = e0 - cor * f * r1;
            toward0 += weight * h * r0;
            toward1 += weight * f * r1;
            if (!dp) continue;
            put(dp, at.logit + k, scale * (posterior[k] - prior[k]), add_dp);
            put(dp, mean, weight * h * r0, add_dp);
            put(dp, mean + 1, weight * f * r1, add_dp);
            put(dp, std, weight * (h * e0 - (REAL)1) * r0, add_dp);
            put(dp, std + 1, weight * (f * f - (REAL)1) * r1, add_dp);
            put(dp, at.cor + k, weight * f * e0 * r1, add_dp);
        }
        if (dz) {
            toward0 = warp_sum(toward0);
            toward1 = warp_sum(toward1);
            if (lane == 0) put(dz, g * d, -toward0, add_dz);
            if (lane == 0) put(dz, g * d + 1, -toward1, add_dz);
        }
#pragma unroll 1
        for (int i = 2; i < d; i++) {
            REAL toward = 0, x = z[g * d + i];
#pragma unroll 1
            for (int k = lane; k < components; k += WARP) {
                int mean = at.mean + k * d + i, std = at.std + k * d + i;
                REAL weight = scale * posterior[k], r = (REAL)1 / p[std];
                REAL e = (x - p[mean]) * r;
                toward += weight * e * r;
                if (!dp) continue;
                put(dp, mean, weight * e * r, add_dp);
                put(dp, std, weight * (e * e - (REAL)1) * r, add_dp);
            }
            if (dz) {
                toward = warp_sum(toward);
                if (lane == 0) put(dz, g * d + i, -toward, add_dz);
            }
        }
    }
}

// A sample of each group's mixture: z = mean + heat·(L·eps) of the first component whose cumulative weight is above the group's
// `choice`, found in double precision as on the CPU. heat [groups·d]. One thread per group of a row.
KERNEL __launch_bounds__(256) mixture_sample(
    const REAL* __restrict__ p, const REAL* __restrict__ choice, const REAL* __restrict__ eps, const REAL* __restrict__ heat,
    REAL* __restrict__ z, int n, int groups, int components, int d) {
    for (long long job = first_element(); job < n; job += element_stride()) {
        long long row = job / groups;
        int g = (int)(job % groups);
        const REAL *q = p + row * groups * components * (2 * d + 2), *noise = eps + job * d;
        Group at(groups, components, d, g);
        const REAL* logits = q + at.logit;
        REAL max = logits[0];
        for (int k = 1; k < components; k++) max = larger(max, logits[k]);
        double total = 0;
        for (int k = 0; k < components; k++) total += exp((double)logits[k] - (double)max);
        double limit = (double)choice[job] * total, sum = 0;
        int chosen = 0;
        for (; chosen < components - 1; chosen++) {
            sum += exp((double)logits[chosen] - (double)max);
            if (sum > limit) break;
        }
        const REAL *mean = q + at.mean + chosen * d, *std = q + at.std + chosen * d;
        for (int j = 0; j < d; j++) {
            REAL coupled = j == 1 ? q[at.cor + chosen] * noise[0] : (REAL)0;
            z[job * d + j] = mean[j] + heat[g * d + j] * (std[j] * noise[j] + coupled);
        }
    }
}
