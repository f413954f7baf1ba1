// stn: no kernels yet.
