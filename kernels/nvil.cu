// nvil: no kernels yet.
