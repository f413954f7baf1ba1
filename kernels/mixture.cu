// mixture: no kernels yet.
