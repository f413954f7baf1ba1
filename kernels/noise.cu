// Random numbers of src/rng.rs.

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
