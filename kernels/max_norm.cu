// max_norm: no kernels yet.
