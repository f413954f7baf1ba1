// squash: no kernels yet.
