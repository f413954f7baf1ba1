// bezier: no kernels yet.
