// Layouts and token affines to matrices: src/ops/affine.rs, where the formulas stand. One thread per row.

#define LAYOUT 0
#define INVERSE 1
#define SEVEN 2

// The four entries of a token's matrix before scaling, cos θ and sin θ.
struct Token {
    REAL p, q, r, w, cosine, sine;
};

__device__ __forceinline__ Token token(const REAL* x, REAL radians) {
    REAL angle = x[4] * radians, c = cos(angle), s = sin(angle), u = x[5], v = x[6], k = (REAL)1 + u * v;
    return {c * k + s * u, u * c - s * k, c * v + s, c - s * v, c, s};
}

KERNEL __launch_bounds__(256) affine_fwd(const REAL* __restrict__ x, REAL* __restrict__ y, int n, int kind, REAL radians) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        const REAL* in = x + i * (kind == SEVEN ? 7 : 4);
        REAL* m = y + i * 6;
        REAL a = in[0], b = in[1];
        if (kind == SEVEN) {
            Token t = token(in, radians);
            m[0] = in[2] * t.p, m[1] = in[3] * t.q, m[2] = a, m[3] = in[2] * t.r, m[4] = in[3] * t.w, m[5] = b;
        } else {
            REAL c = cos(in[3]), s = sin(in[3]);
            if (kind == LAYOUT) {
                c *= in[2], s *= in[2];
                m[0] = c, m[1] = -s, m[2] = a, m[3] = s, m[4] = c, m[5] = b;
            } else {
                c /= in[2], s /= in[2];
                m[0] = c, m[1] = s, m[2] = -(c * a + s * b), m[3] = -s, m[4] = c, m[5] = s * a - c * b;
            }
        }
    }
}

KERNEL __launch_bounds__(256) affine_bwd(const REAL* __restrict__ x, const REAL* __restrict__ dy, REAL* __restrict__ dx, int add_dx,
                                         int n, int kind, REAL radians) {
    if (!dx) return;
    for (long long i = first_element(); i < n; i += element_stride()) {
        int width = kind == SEVEN ? 7 : 4;
        const REAL *in = x + i * width, *d = dy + i * 6;
        REAL out[7];
        if (kind == SEVEN) {
            Token t = token(in, radians);
            REAL dp = in[2] * d[0], dq = in[3] * d[1], dr = in[2] * d[3], dw = in[3] * d[4];
            out[0] = d[2], out[1] = d[5], out[2] = d[0] * t.p + d[3] * t.r, out[3] = d[1] * t.q + d[4] * t.w;
            out[4] = radians * (dp * t.q - dq * t.p + dr * t.w - dw * t.r);
            out[5] = dp * t.r + dq * t.w;
            out[6] = (dp * t.cosine - dq * t.sine) * in[5] + dr * t.cosine - dw * t.sine;
        } else {
            REAL c = cos(in[3]), s = sin(in[3]);
            if (kind == LAYOUT) {
                REAL dc = d[0] + d[4], ds = d[3] - d[1];
                out[0] = d[2], out[1] = d[5], out[2] = c * dc + s * ds, out[3] = in[2] * (c * ds - s * dc);
            } else {
                c /= in[2], s /= in[2];
                REAL a = in[0], b = in[1];
                REAL dc = d[0] + d[4] - a * d[2] - b * d[5], ds = d[1] - d[3] - b * d[2] + a * d[5];
                out[0] = s * d[5] - c * d[2], out[1] = -s * d[2] - c * d[5];
                out[2] = -(c * dc + s * ds) / in[2], out[3] = c * ds - s * dc;
            }
        }
        for (int k = 0; k < 7; k++) {
            if (k < width) put(dx, i * width + k, out[k], add_dx);
        }
    }
}
