// raster: no kernels yet.
