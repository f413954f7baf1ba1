// tanh_ratio: no kernels yet.
