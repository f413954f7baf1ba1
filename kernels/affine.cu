// affine: no kernels yet.
