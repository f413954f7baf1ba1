// likelihood: no kernels yet.
