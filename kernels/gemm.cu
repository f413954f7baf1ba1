// gemm: no kernels yet.
