// render_stroke: no kernels yet.
