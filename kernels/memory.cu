// Constants, and sums of gradients.

KERNEL __launch_bounds__(256) fill(REAL* y, int n, REAL value) {
    for (long long i = first_element(); i < n; i += element_stride()) y[i] = value;
}

// sum = x, or sum += x.
KERNEL __launch_bounds__(256) accumulate(const REAL* x, REAL* sum, int add, int n) {
    for (long long i = first_element(); i < n; i += element_stride()) put(sum, i, x[i], add);
}
