// The images of an update.

// Image `order[(update mod epoch)·batch + row]` of the data set, as numbers in [0, 1]: y [rows, pixels].
KERNEL __launch_bounds__(256) gather(const unsigned char* images, const unsigned* order, REAL* y, u64 update, const unsigned* clock,
                                     unsigned per_epoch, int batch, int rows, int pixels) {
    long long from = (long long)(clock_step(update, clock) % per_epoch) * batch;
    long long n = (long long)rows * pixels;
    for (long long i = first_element(); i < n; i += element_stride()) {
        long long image = order[from + i / pixels];
        y[i] = (REAL)((float)images[image * pixels + i % pixels] / 255.0f);
    }
}
