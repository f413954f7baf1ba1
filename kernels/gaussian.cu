// gaussian: no kernels yet.
