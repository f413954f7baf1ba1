// shape: no kernels yet.
