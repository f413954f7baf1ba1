// The clock of a captured step: see `clock_step`.

KERNEL __launch_bounds__(32) set_clock(u64 time, unsigned* clock) {
    if (threadIdx.x == 0) {
        clock[0] = (unsigned)time;
        clock[1] = (unsigned)(time >> 32);
    }
}

KERNEL __launch_bounds__(32) tick(unsigned* clock) {
    if (threadIdx.x == 0 && ++clock[0] == 0) clock[1]++;
}
