//! One stroke, from control points to its image, in one pass per image (steps 1 to 6 of section 6 of the model).
//!
//! ```text
//! placement "warp":    G = STN(raster(bezier(z), σ), A⁻¹)        matrix = A⁻¹
//! placement "points":  G = raster(bezier(A·z), σ)                matrix = A
//! r = tanh(G / (m·ω0)),   m = max G where that is at least `norm_floor`, else 1; a constant in differentiation
//! ```
//!
//! Everything between the control points and r stays in the memory of one thread. The backward keeps the raster and m, and
//! computes the exponentials again. On a GPU a stroke stays in the shared memory of one block, one launch each way, or, where it is too
//! large for that, goes through the kernels of its parts. With dG the gradient of the raster, dω0 = −Σ dG ⊙ raster / ω0, since r depends on the raster only
//! through raster/ω0 where m is constant.

mod launches;

use super::{
    Cost, Op,
    bezier::{self, bernstein, sample_curve, sample_curve_backward},
    live::is_live,
    max_norm::divisor,
    place_points::{count, place, place_backward},
    raster::{Raster, TOGETHER, add_columns},
    size,
    stn::Sampler,
};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How a stroke gets from its glimpse onto the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Drawn in the glimpse frame, and the image is warped: the pen width scales with the layout.
    Warp,
    /// The control points are moved and drawn in the canvas frame: the pen width is that of the canvas.
    Points,
}

/// How strokes are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RenderSettings {
    /// Warped or placed by points.
    pub placement: Placement,
    /// Pixels per side of the image.
    pub side: usize,
    /// Samples of the curve.
    pub samples: usize,
    /// An image whose maximum is below this is not divided by it.
    pub norm_floor: f64,
}

struct RenderStroke {
    on: Tensor,
    set: RenderSettings,
}

/// Draws one stroke per image, its largest value tanh(1/ω0).
///
/// points `[N, 2J]` or `[N, J, 2]`; matrix `[N, 6]`: the inverse affine of the layout for [`Placement::Warp`], the affine for
/// [`Placement::Points`]; pen `[N, 2]`: pen width σ and slope ω0; on `[N]` or `[N, 1]`, 0 or 1: the image of a stroke that is off is
/// exactly 0 and costs nothing → `[N, side, side]`.
#[track_caller]
pub fn render_stroke<'t>(
    points: Var<'t>,
    matrix: Var<'t>,
    pen: Var<'t>,
    on: &Tensor,
    settings: RenderSettings,
) -> Var<'t> {
    points.tape().apply(RenderStroke { on: on.clone(), set: settings }, &[points, matrix, pen])
}

/// What the strokes of one batch share.
struct Brush<'a, T> {
    basis: Vec<T>,
    raster: Raster<T>,
    sampler: Sampler,
    points: &'a [T],
    matrix: &'a [T],
    pen: &'a [T],
    on: &'a [T],
    /// Control points per stroke.
    j: usize,
    set: RenderSettings,
}

impl<'a, T: Real> Brush<'a, T> {
    fn new(op: &'a RenderStroke, x: &'a [Tensor], j: usize) -> Self {
        let (side, samples) = (op.set.side, op.set.samples);
        Brush {
            basis: bernstein(j, samples),
            raster: Raster::new(side, samples),
            sampler: Sampler::new(side, side),
            points: x[0].slice(),
            matrix: x[1].slice(),
            pen: x[2].slice(),
            on: op.on.slice(),
            j,
            set: op.set,
        }
    }

    fn scratch(&self) -> usize {
        self.raster.scratch() + self.small() + 2 * self.sampler.padded() + self.set.side.pow(2)
    }

    /// Two curves and two sets of points.
    fn small(&self) -> usize {
        (4 * (self.set.samples + self.j)).next_multiple_of(16)
    }

    #[inline(always)]
    fn stroke(&self, i: usize) -> (&'a [T], &'a [T], T, T) {
        let points = &self.points[2 * self.j * i..][..2 * self.j];
        (points, &self.matrix[6 * i..][..6], self.pen[2 * i], self.pen[2 * i + 1])
    }

    /// The sampled curve in the frame where it is drawn; `moved` is room for control points.
    #[inline(always)]
    fn curve(&self, i: usize, moved: &mut [T], curve: &mut [T]) {
        let (points, matrix, ..) = self.stroke(i);
        match self.set.placement {
            Placement::Warp => moved.copy_from_slice(points),
            Placement::Points => place(matrix, points, moved),
        }
        sample_curve(&self.basis, moved, curve);
    }

    /// Writes the image, the raster and its divisor.
    #[inline(always)]
    fn draw(&self, i: usize, memory: &mut [T], image: &mut [T], raw: &mut [T]) -> T {
        let side = self.set.side;
        let (plane, rest) = memory.split_at_mut(self.raster.scratch());
        let (small, padded) = rest.split_at_mut(self.small());
        let (moved, curve) = small.split_at_mut(2 * self.j);
        let curve = &mut curve[..2 * self.set.samples];
        let (_, matrix, sigma, slope) = self.stroke(i);
        self.curve(i, moved, curve);
        let mut sheet = self.raster.sheet(plane);
        self.raster.draw(curve, sigma, &mut sheet);
        for (raw, ink) in raw.chunks_exact_mut(side).zip(sheet.ink.chunks_exact(sheet.stride)) {
            raw.copy_from_slice(&ink[..side]);
        }
        match self.set.placement {
            Placement::Points => image.copy_from_slice(raw),
            Placement::Warp => {
                let padded = &mut padded[..self.sampler.padded()];
                self.sampler.pad(raw, side, padded);
                self.sampler.sample(matrix, padded, image);
            }
        }
        let most = divisor(image, self.set.norm_floor);
        let steep = T::ONE / (most * slope);
        for r in image.iter_mut() {
            *r = (*r * steep).tanh();
        }
        most
    }

    /// Writes the gradients of points (2J), matrix (6) and pen (2), side by side.
    #[inline(always)]
    fn draw_backward(&self, i: usize, memory: &mut [T], [dr, r, raw]: [&[T]; 3], most: T, d: &mut [T]) {
        let side = self.set.side;
        let (plane, rest) = memory.split_at_mut(self.raster.scratch());
        let (small, rest) = rest.split_at_mut(self.small());
        let (moved, small) = small.split_at_mut(2 * self.j);
        let (dmoved, small) = small.split_at_mut(2 * self.j);
        let (curve, dcurve) = small.split_at_mut(2 * self.set.samples);
        let dcurve = &mut dcurve[..2 * self.set.samples];
        let (padded, rest) = rest.split_at_mut(self.sampler.padded());
        let (dpadded, dplaced) = rest.split_at_mut(self.sampler.padded());
        let dplaced = &mut dplaced[..side * side];
        let (dpoints, rest) = d.split_at_mut(2 * self.j);
        let (dmatrix, dpen) = rest.split_at_mut(6);

        let (points, matrix, sigma, slope) = self.stroke(i);
        let steep = T::ONE / (most * slope);
        for ((d, &dr), &r) in dplaced.iter_mut().zip(dr).zip(r) {
            *d = dr * (T::ONE - r * r) * steep;
        }
        let mut sheet = self.raster.sheet(plane);
        let stride = sheet.stride;
        let rows = sheet.ink.chunks_exact_mut(stride).take(side);
        match self.set.placement {
            Placement::Points => {
                dpen[1] = -cpu::sum(
                    [&*dplaced, raw],
                    #[inline(always)]
                    |[d, raw]| d * raw,
                ) / slope;
                for (ink, d) in rows.zip(dplaced.chunks_exact(side)) {
                    ink[..side].copy_from_slice(d);
                }
            }
            Placement::Warp => {
                self.sampler.pad(raw, side, padded);
                dpadded.fill(T::ZERO);
                dmatrix.copy_from_slice(&self.sampler.sample_backward(matrix, padded, dplaced, Some(dpadded)));
                dpen[1] = -cpu::sum(
                    [&*dpadded, &*padded],
                    #[inline(always)]
                    |[d, raw]| d * raw,
                ) / slope;
                for (ink, d) in rows.zip(self.sampler.rows(dpadded)) {
                    ink[..side].copy_from_slice(d);
                }
            }
        }
        self.curve(i, moved, curve);
        dpen[0] = self.raster.draw_backward(curve, sigma, &mut sheet, dcurve);
        dmoved.fill(T::ZERO);
        sample_curve_backward(&self.basis, dcurve, dmoved);
        match self.set.placement {
            Placement::Warp => dpoints.copy_from_slice(dmoved),
            Placement::Points => place_backward(matrix, points, dmoved, dmatrix, dpoints),
        }
    }
}

impl RenderStroke {
    #[track_caller]
    fn sizes(&self, x: &[Tensor]) -> (usize, usize) {
        let (n, j) = count("render_stroke", &x[0]);
        let (matrix, pen, on) = (x[1].shape(), x[2].shape(), self.on.len());
        assert!(
            matrix == [n, 6] && pen == [n, 2] && on == n && self.set.side > 0,
            "render_stroke: {n} strokes, matrix {matrix:?}, pen {pen:?}, {on} times on; wanted [N, 6], [N, 2], [N]"
        );
        (n, j)
    }
}

impl Op for RenderStroke {
    fn name(&self) -> &'static str {
        "render_stroke"
    }

    /// Saves the rasters `[N, side, side]` and what they were divided by `[N]`; both are arbitrary where the stroke is off.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let ((n, j), side) = (self.sizes(x), self.set.side);
        let (mut y, mut raw) = (Tensor::empty(cx, &[n, side, side]), Tensor::empty(cx, &[n, side, side]));
        let mut most = Tensor::empty(cx, &[n]);
        on_device!(cx, T => {
            let brush = Brush::<T>::new(self, x, j);
            let images = y.slice_mut::<T>().par_chunks_mut(side * side * TOGETHER);
            let raws = raw.slice_mut::<T>().par_chunks_mut(side * side * TOGETHER);
            let mosts = most.slice_mut::<T>().par_chunks_mut(TOGETHER);
            images.zip(raws).zip(mosts).enumerate().for_each(|(task, ((images, raws), mosts))| {
                cpu::simd(#[inline(always)] || cpu::with_scratch(brush.scratch(), #[inline(always)] |memory| {
                    let pairs = images.chunks_exact_mut(side * side).zip(raws.chunks_exact_mut(side * side));
                    for (k, ((image, raw), most)) in pairs.zip(mosts).enumerate() {
                        let i = task * TOGETHER + k;
                        if is_live(Some(brush.on), i) {
                            *most = brush.draw(i, memory, image, raw);
                        } else {
                            image.fill(T::ZERO);
                        }
                    }
                }));
            });
        }, gpu => {
            bezier::check(j, self.set.samples);
            if let Some(fast) = self.fast(gpu, j) {
                fast.forward(gpu, self, x, [&y, &raw, &most]);
            } else {
                self.forward_by_parts(gpu, x, [&y, &raw, &most]);
            }
        });
        vec![y, raw, most]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ((n, j), pixels) = (self.sizes(x), self.set.side.pow(2));
        on_device!(cx, T => {
            let brush = Brush::<T>::new(self, x, j);
            let (r, raw, most) = (y[0].slice::<T>(), y[1].slice::<T>(), y[2].slice::<T>());
            let dy = dy.slice::<T>();
            let mut d = vec![T::ZERO; n * (2 * j + 8)];
            cpu::each_row(&mut d, 2 * j + 8, TOGETHER, #[inline(always)] |i, d| {
                if is_live(Some(brush.on), i) {
                    let images = [dy, r, raw].map(#[inline(always)] |all| &all[pixels * i..][..pixels]);
                    cpu::with_scratch(brush.scratch(), #[inline(always)] |memory| {
                        brush.draw_backward(i, memory, images, most[i], d);
                    });
                }
            });
            add_columns(dx, &d, &[2 * j, 6, 2]);
        }, gpu => {
            let slots = [grad(&mut dx[0]), grad(&mut dx[1]), grad(&mut dx[2])];
            if let Some(fast) = self.fast(gpu, j) {
                fast.backward(gpu, self, x, y, dy, slots);
            } else {
                self.backward_by_parts(gpu, x, y, dy, slots);
            }
        });
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let (n, _) = count("render_stroke", &x[0]);
        let per_pixel = if self.set.placement == Placement::Warp { 60 } else { 30 };
        let flops = Raster::<f32>::flops(self.set.side, self.set.samples) + (per_pixel * self.set.side.pow(2)) as f64;
        Cost { flops: n as f64 * flops, bytes: size(x) + size([&self.on, y]) }
    }
}

#[cfg(test)]
mod tests {
    use super::{launches::Fast, *};
    use crate::{DType, Grads, NodeGrads, Tape, gradcheck::gradcheck_at, rng::Rng, rng::Stream};

    const P: [f64; 10] = [0.2, 0.2, 0.4, 0.1, 0.5, 0.5, 0.6, 0.9, 0.8, 0.7];
    const L: [f64; 4] = [0.1, -0.2, 0.6, 0.3];
    const BOTH: [Placement; 2] = [Placement::Warp, Placement::Points];

    fn settings(placement: Placement, side: usize, samples: usize) -> RenderSettings {
        RenderSettings { placement, side, samples, norm_floor: 1e-4 }
    }

    fn matrix(layout: Var, placement: Placement) -> Var {
        if placement == Placement::Warp { layout.inverse_affine() } else { layout.affine() }
    }

    /// Points, layouts, pens of n different strokes.
    fn strokes(device: &Device, n: usize) -> [Tensor; 3] {
        let draw = |k: u32, shape: &[usize], low: &[f64], high: &[f64]| {
            let u = Rng::new(9, 0).uniform_tensor(device, Stream(k), shape).to_f64();
            let values: Vec<f64> = u
                .iter()
                .enumerate()
                .map(|(i, u)| low[i % low.len()] + u * (high[i % low.len()] - low[i % low.len()]))
                .collect();
            Tensor::from_f64(device, shape, &values)
        };
        let points = draw(0, &[n, 10], &[-0.1], &[1.1]);
        let layouts = draw(1, &[n, 4], &[-0.5, -0.5, 0.35, -0.7], &[0.5, 0.5, 1.0, 0.7]);
        [points, layouts, draw(2, &[n, 2], &[0.03, 0.2], &[0.06, 0.9])]
    }

    fn on(device: &Device, n: usize) -> Tensor {
        let values: Vec<f64> = (0..n).map(|i| if i % 5 == 2 { 0.0 } else { 1.0 }).collect();
        Tensor::from_f64(device, &[n], &values)
    }

    /// The image and the gradients of points, layout and pen.
    fn both_ways(
        device: &Device,
        x: &[Tensor; 3],
        draw: impl for<'t> Fn(&'t Tape<'t>, [Var<'t>; 3]) -> Var<'t>,
    ) -> [Vec<f64>; 4] {
        fn run<'t>(
            tape: &'t Tape<'t>,
            x: &[Tensor; 3],
            draw: impl Fn(&'t Tape<'t>, [Var<'t>; 3]) -> Var<'t>,
        ) -> [Vec<f64>; 4] {
            let vars = x.each_ref().map(|x| tape.input(x.clone()));
            let r = draw(tape, vars);
            let w = Rng::new(3, 0).normal_tensor(tape.device(), Stream(7), &r.shape());
            let grads: NodeGrads = tape.backward((r * tape.constant(w)).sum(), &mut Grads::none(tape.device()));
            let [a, b, c] = vars.map(|v| grads.of(v).to_f64());
            [r.value().to_f64(), a, b, c]
        }
        run(&Tape::without_params(device), x, draw)
    }

    fn fused(device: &Device, n: usize, set: RenderSettings) -> [Vec<f64>; 4] {
        let on = on(device, n);
        both_ways(device, &strokes(device, n), |_, [points, layout, pen]| {
            render_stroke(points, matrix(layout, set.placement), pen, &on, set)
        })
    }

    #[test]
    fn strokes_of_ordinary_size_fit_into_the_shared_memory_of_a_block() {
        let fits = |side, samples, j, dtype| Fast::new(settings(Placement::Warp, side, samples), j, dtype).is_some();
        assert!(fits(64, 128, 32, DType::F32) && fits(50, 100, 5, DType::F32) && fits(1, 128, 32, DType::F32));
        assert!(!fits(65, 100, 5, DType::F32) && !fits(50, 129, 5, DType::F32) && !fits(50, 100, 33, DType::F32));
        assert!(fits(28, 60, 5, DType::F64) && !fits(64, 128, 5, DType::F64));
    }

    #[test]
    fn the_fused_stroke_equals_its_parts() {
        let (device, n) = (Device::cpu_f64(), 6);
        for set in [settings(Placement::Warp, 19, 30), settings(Placement::Points, 19, 30)] {
            let parts = both_ways(&device, &strokes(&device, n), |tape, [points, layout, pen]| {
                let m = matrix(layout, set.placement);
                let (sigma, slope) = (pen.column(0), pen.column(1));
                let on: Vec<f64> = on(&device, n).to_f64().iter().flat_map(|&on| vec![on; 19 * 19]).collect();
                let on = tape.constant(Tensor::from_f64(&device, &[n, 19, 19], &on));
                let ink = match set.placement {
                    Placement::Warp => (points.bezier(30).raster(sigma, 19) * on).stn(m, None),
                    Placement::Points => points.place_points(m).bezier(30).raster(sigma, 19) * on,
                };
                ink.max_norm(1e-4).tanh_ratio(slope)
            });
            for (name, (a, b)) in
                ["image", "points", "layout", "pen"].iter().zip(fused(&device, n, set).iter().zip(&parts))
            {
                let scale = b.iter().fold(0.0f64, |m, b| m.max(b.abs()));
                assert!(scale > 0.0);
                for (a, b) in a.iter().zip(b) {
                    assert!((a - b).abs() < 1e-12 * scale, "{:?} {name}: {a} {b}", set.placement);
                }
            }
        }
    }

    #[test]
    fn render_stroke_gradients() {
        // The maximum is a constant in differentiation, but not in differences: with a floor that no image reaches there is none.
        let device = Device::cpu_f64();
        let [points, layout, pen] = strokes(&device, 3);
        let on = Tensor::from_f64(&device, &[3], &[1.0, 0.0, 1.0]);
        for placement in BOTH {
            let set = RenderSettings { norm_floor: 1e9, ..settings(placement, 17, 12) };
            let pens = |tape: &Tape, pen: &Tensor| {
                let wide: Vec<f64> = pen.to_f64().iter().map(|p| p * 4.0).collect();
                Tensor::from_f64(tape.device(), pen.shape(), &wide)
            };
            let error = gradcheck_at(std::slice::from_ref(&points), |tape, x| {
                let m = matrix(tape.constant(layout.clone()), placement);
                render_stroke(x[0], m, tape.constant(pens(tape, &pen)), &on, set)
            });
            assert!(error < 1e-6, "points {placement:?}: {error}");
            let error = gradcheck_at(std::slice::from_ref(&pen), |tape, x| {
                let m = matrix(tape.constant(layout.clone()), placement);
                render_stroke(tape.constant(points.clone()), m, x[0] * 4.0, &on, set)
            });
            assert!(error < 1e-6, "pen {placement:?}: {error}");
            // Small steps, so that no sample of the warp crosses from one pixel to the next.
            let zero = Tensor::zeros(&device, &[3, 4]);
            let error = gradcheck_at(&[zero], |tape, x| {
                let m = matrix(x[0] * 0.01 + tape.constant(layout.clone()), placement);
                render_stroke(tape.constant(points.clone()), m, tape.constant(pens(tape, &pen)), &on, set)
            });
            assert!(error < 1e-6, "matrix {placement:?}: {error}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let device = Device::cpu();
        for placement in BOTH {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let strokes = fused(&device, 23, settings(placement, 50, 100));
                    let seen =
                        both_ways(&device, &strokes_as_images(&device, &strokes[0]), |tape, [image, layout, _]| {
                            image.stn(layout.affine(), Some(&on(tape.device(), 23)))
                        });
                    [strokes, seen].concat().concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                })
            };
            assert_eq!(run(1), run(2));
        }
    }

    fn strokes_as_images(device: &Device, images: &[f64]) -> [Tensor; 3] {
        let [_, layouts, pens] = strokes(device, 23);
        [Tensor::from_f64(device, &[23, 50, 50], images), layouts, pens]
    }

    fn near(value: f64, want: f64) {
        assert!((value - want).abs() < 1e-5 * want.abs().max(1e-3), "{value} {want}");
    }

    #[test]
    fn strokes_have_the_reference_values() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let input = |shape: &[usize], values: &[f64]| tape.constant(Tensor::from_f64(&device, shape, values));
        let one = Tensor::full(&device, &[1], 1.0);
        let stroke = |placement, points: &[f64], layout: &[f64]| {
            let m = matrix(input(&[1, 4], layout), placement);
            render_stroke(input(&[1, 10], points), m, input(&[1, 2], &[0.02, 0.5]), &one, settings(placement, 50, 100))
        };
        let at = |image: &[f64], i: usize, j: usize| image[50 * i + j];

        let warped = stroke(Placement::Warp, &P, &L).value().to_f64();
        near(warped.iter().sum(), 51.63905);
        near(warped.iter().copied().fold(0.0, f64::max), 0.9640276);
        for (i, j, want) in [(29, 31, 0.9640276), (20, 27, 0.8307197), (22, 30, 0.001408964), (25, 25, 9.8907e-6)] {
            near(at(&warped, i, j), want);
        }
        let placed = stroke(Placement::Points, &P, &L);
        let image = placed.value().to_f64();
        near(image.iter().sum(), 79.25743);
        for (i, j, want) in [(29, 31, 0.9640276), (20, 27, 0.7784020), (22, 30, 0.1505445), (25, 25, 0.003797414)] {
            near(at(&image, i, j), want);
        }
        let seen = placed.stn(input(&[1, 4], &L).affine(), None).value().to_f64();
        near(seen.iter().sum(), 220.1662);
        near(seen.iter().copied().fold(0.0, f64::max), 0.9571381);
        for (i, j, want) in [(10, 10, 0.5545877), (12, 20, 0.7600980), (25, 25, 0.7837885), (35, 40, 0.7124295)] {
            near(at(&seen, i, j), want);
        }
        let other =
            stroke(Placement::Points, &[0.8, 0.8, 0.9, 0.6, 0.5, 0.5, 0.1, 0.4, 0.3, 0.2], &[-0.1, 0.2, 0.8, -0.2]);
        let canvas = (placed + other).tanh_ratio(input(&[1], &[0.8])).value().to_f64();
        near(canvas.iter().sum(), 184.2420);
        near(canvas.iter().copied().fold(0.0, f64::max), 0.8391288);
        for (i, j, want) in [(20, 27, 0.7500207), (30, 20, 0.7283866), (25, 25, 0.004747658)] {
            near(at(&canvas, i, j), want);
        }
    }
}
