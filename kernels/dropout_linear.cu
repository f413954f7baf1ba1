// dropout_linear: no kernels yet.
