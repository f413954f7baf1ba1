// linear: no kernels yet.
