// log_mean_exp: no kernels yet.
