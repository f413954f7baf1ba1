// conv_pair: no kernels yet.
