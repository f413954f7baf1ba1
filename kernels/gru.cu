// gru: no kernels yet.
