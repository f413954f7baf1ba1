// onoff: no kernels yet.
