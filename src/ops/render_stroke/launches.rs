//! Strokes on a GPU: in the shared memory of one block where they fit, else through the kernels of their parts.

use super::{Placement, RenderSettings, RenderStroke};
use crate::{
    DType, Tensor,
    gpu::{Arg, Gpu, Launch, args},
    kernels::render_stroke::{MOST_POINTS, MOST_SIDE, THREADS},
    ops::raster,
};

/// The kernels that keep a stroke in the shared memory of one block, where it fits.
pub(super) struct Fast {
    j: usize,
    set: RenderSettings,
    /// Shared memory in bytes, forward and backward.
    bytes: [usize; 2],
}

impl Fast {
    /// The longest curve, and the shared memory that every card has for one block.
    const SAMPLES: usize = 128;
    const BYTES: usize = 99 << 10;

    pub fn new(set: RenderSettings, j: usize, dtype: DType) -> Option<Self> {
        let RenderSettings { side, samples, .. } = set;
        if side > MOST_SIDE || samples > Self::SAMPLES || j > MOST_POINTS {
            return None;
        }
        // The layouts that the kernels describe.
        let deep = samples.next_multiple_of(4);
        let gaussians = 2 * deep * (side.next_multiple_of(8) | 8);
        let forward = gaussians + (side * side).max(samples * j) + 2 * (j + deep);
        let (pixels, deep) = (side.next_multiple_of(4), samples.next_multiple_of(8));
        let gaussians = (pixels * deep.max(pixels)).max(deep * (j + 2) / 2);
        let ink = (side * pixels).max(pixels / 4 * deep).max(deep * j / 2);
        let backward = 2 * (gaussians + ink + deep + j);
        // Beside these there is what the kernels declare themselves.
        let bytes = [forward, backward].map(|numbers| numbers * dtype.bytes());
        bytes.iter().all(|&b| b + 300 * dtype.bytes() <= Self::BYTES).then_some(Fast { j, set, bytes })
    }

    pub fn forward(&self, gpu: &Gpu, op: &RenderStroke, x: &[Tensor], [y, raw, most]: [&Tensor; 3]) {
        let (out, floor) = ([y.out(), raw.out(), most.out()], Arg::Real(self.set.norm_floor));
        let (side, samples) = (self.set.side, self.set.samples);
        let sizes = [self.j, side, samples, op.warped()].map(Arg::from);
        let all =
            args![&x[0], &x[1], &x[2], &op.on, out[0], out[1], out[2], sizes[0], sizes[1], sizes[2], sizes[3], floor];
        let launch = Launch::rows(most.len(), THREADS).shared(self.bytes[0]);
        gpu.launch("render_stroke", "render_stroke_fwd", launch, all);
    }

    pub fn backward(
        &self,
        gpu: &Gpu,
        op: &RenderStroke,
        x: &[Tensor],
        y: &[Tensor],
        dy: &Tensor,
        slots: [[Arg; 2]; 3],
    ) {
        let saved = [&x[0], &x[1], &x[2], &op.on, &y[0], &y[1], &y[2], dy].map(Arg::from);
        let sizes = [self.j, self.set.side, self.set.samples, op.warped()].map(Arg::from);
        let all = [&saved[..], slots.as_flattened(), &sizes].concat();
        let launch = Launch::rows(y[2].len(), THREADS).shared(self.bytes[1]);
        gpu.launch("render_stroke", "render_stroke_bwd", launch, &all);
    }
}

impl RenderStroke {
    /// The fast kernels, unless the stroke is too large for them or plain ones are asked for (`DOOD_CUDA_NAIVE=1`).
    pub(super) fn fast(&self, gpu: &Gpu, j: usize) -> Option<Fast> {
        if gpu.naive() { None } else { Fast::new(self.set, j, gpu.dtype()) }
    }

    fn warped(&self) -> usize {
        (self.set.placement == Placement::Warp) as usize
    }

    /// The sampled curves in the frame where they are drawn, on a GPU.
    fn curves(&self, gpu: &Gpu, x: &[Tensor]) -> Tensor {
        let ((n, j), cx, samples) = (self.sizes(x), x[0].device(), self.set.samples);
        let (mut points, curve) = (x[0].clone(), Tensor::empty(cx, &[n, samples, 2]));
        if self.set.placement == Placement::Points {
            points = Tensor::empty(cx, x[0].shape());
            let all = args![&x[0], &x[1], points.out(), n, j];
            gpu.launch("place_points", "place_points_fwd", Launch::elements(n * j), all);
        }
        let all = args![&points, curve.out(), n, j, samples];
        gpu.launch("bezier", "bezier_fwd", Launch::elements(n * samples), all);
        curve
    }

    pub(super) fn forward_by_parts(&self, gpu: &Gpu, x: &[Tensor], [y, raw, most]: [&Tensor; 3]) {
        raster::launch(gpu, [&self.curves(gpu, x), &x[2]], Some(&self.on), raw);
        let (side, floor) = (self.set.side, Arg::Real(self.set.norm_floor));
        let all = args![&x[1], &x[2], &self.on, raw, y.out(), most.out(), side, self.warped(), floor];
        gpu.launch("render_stroke", "render_naive_fwd", Launch::rows(most.len(), 256), all);
    }

    pub(super) fn backward_by_parts(&self, gpu: &Gpu, x: &[Tensor], y: &[Tensor], dy: &Tensor, slots: [[Arg; 2]; 3]) {
        let ((n, j), cx, side, samples) = (self.sizes(x), x[0].device(), self.set.side, self.set.samples);
        let [[dpoints, add_points], [dmatrix, add_matrix], [dpen, add_pen]] = slots;
        let [dplaced, dink] = [(); 2].map(|()| Tensor::empty(cx, &[n, side, side]));
        let saved = [&x[1], &x[2], &self.on, &y[0], &y[1], &y[2], dy].map(Arg::from);
        let out = [dplaced.out(), dink.out(), dmatrix, add_matrix, dpen, add_pen, side.into(), self.warped().into()];
        gpu.launch("render_stroke", "render_naive_bwd", Launch::rows(n, 256), &[&saved[..], &out].concat());

        let (curve, dcurve) = (self.curves(gpu, x), Tensor::empty(cx, &[n, samples, 2]));
        let slots = [[dcurve.out(), Arg::Int(0)], [dpen, add_pen]];
        raster::launch_backward(gpu, [&curve, &x[2]], Some(&self.on), &dink, slots);
        let bezier = |to: Arg, add: Arg| {
            gpu.launch("bezier", "bezier_bwd", Launch::rows(n, 256), args![&dcurve, to, add, j, samples]);
        };
        match self.set.placement {
            Placement::Warp => bezier(dpoints, add_points),
            Placement::Points => {
                let dmoved = Tensor::empty(cx, x[0].shape());
                bezier(dmoved.out(), Arg::Int(0));
                let all = args![&x[0], &x[1], &dmoved, dpoints, add_points, dmatrix, add_matrix, j];
                gpu.launch("place_points", "place_points_bwd", Launch::rows(n, 32), all);
            }
        }
    }
}
