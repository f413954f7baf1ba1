// h' = (1 − z)·n + z·h with r = σ(i_r + h_r), z = σ(i_z + h_z), n = tanh(i_n + r·h_n). State [rows, size], from_input, from_state
// and gates [rows, 3·size] in the order r, z, n. One thread per element of the state.
KERNEL __launch_bounds__(256) gru_cell_fwd(const REAL* __restrict__ state, const REAL* __restrict__ from_input,
                                           const REAL* __restrict__ from_state, REAL* __restrict__ next, REAL* __restrict__ gates,
                                           int rows, int size) {
    for (long long i = first_element(); i < (long long)rows * size; i += element_stride()) {
        long long at = i / size * 3 * size + i % size;
        REAL r = sigmoid(from_input[at] + from_state[at]);
        REAL z = sigmoid(from_input[at + size] + from_state[at + size]);
        REAL n = tanh(from_input[at + 2 * size] + r * from_state[at + 2 * size]);
        gates[at] = r;
        gates[at + size] = z;
        gates[at + 2 * size] = n;
        next[i] = ((REAL)1 - z) * n + z * state[i];
    }
}

KERNEL __launch_bounds__(256) gru_cell_bwd(const REAL* __restrict__ state, const REAL* __restrict__ from_state,
                                           const REAL* __restrict__ gates, const REAL* __restrict__ dy, REAL* d_state, int add_state,
                                           REAL* d_from_input, int add_from_input, REAL* d_from_state, int add_from_state, int rows,
                                           int size) {
    for (long long i = first_element(); i < (long long)rows * size; i += element_stride()) {
        long long at = i / size * 3 * size + i % size;
        REAL r = gates[at], z = gates[at + size], n = gates[at + 2 * size], g = dy[i];
        // Before the activations; that of h_n differs from that of i_n by the factor r.
        REAL dn = g * ((REAL)1 - z) * ((REAL)1 - n * n);
        REAL dr = dn * from_state[at + 2 * size] * r * ((REAL)1 - r);
        REAL dz = g * (state[i] - n) * z * ((REAL)1 - z);
        if (d_state) put(d_state, i, g * z, add_state);
        if (d_from_input) {
            put(d_from_input, at, dr, add_from_input);
            put(d_from_input, at + size, dz, add_from_input);
            put(d_from_input, at + 2 * size, dn, add_from_input);
        }
        if (d_from_state) {
            put(d_from_state, at, dr, add_from_state);
            put(d_from_state, at + size, dz, add_from_state);
            put(d_from_state, at + 2 * size, dn * r, add_from_state);
        }
    }
}
