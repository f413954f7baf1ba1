// elementwise: no kernels yet.
