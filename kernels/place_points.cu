// place_points: no kernels yet.
