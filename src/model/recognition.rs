//! What the model infers from images, stroke by stroke: the posterior, the prior at the sampled values, and the drawing
//! (sections 3, 4 and 6).

use super::Model;
use crate::{
    Device, Tape, Tensor, Var,
    ops::{self, Keep, Placement, RenderSettings, Squash, concat, render_stroke},
    rng::{Rng, Stream},
};

/// The random numbers behind one pass, given or drawn.
#[derive(Clone)]
pub struct Noise {
    /// o = \[u < p\]: `[T, B]`, uniform in [0,1).
    pub onoff_u: Tensor,
    /// `[T, B, 4]`, standard normal.
    pub layout_eps: Tensor,
    /// `[T, B, 2J]`, standard normal.
    pub stroke_eps: Tensor,
}

const ONOFF: Stream = Stream(1);
const LAYOUT: Stream = Stream(2);
const STROKE: Stream = Stream(3);
const DROPOUT: u32 = 1 << 16;

impl Noise {
    /// Fresh numbers for a batch of `batch` images.
    pub fn draw(model: &Model, device: &Device, batch: usize, rng: Rng) -> Self {
        let (t, j) = (model.config.strokes, model.config.stroke_dim());
        Noise {
            onoff_u: rng.uniform_tensor(device, ONOFF, &[t, batch]),
            layout_eps: rng.normal_tensor(device, LAYOUT, &[t, batch, 4]),
            stroke_eps: rng.normal_tensor(device, STROKE, &[t, batch, j]),
        }
    }
}

/// The image network's calls of one step, each with a dropout mask of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The target image.
    Target,
    /// The canvas, for the GRUs and the baseline.
    Canvas,
    /// The residual.
    Residual,
    /// The target seen through the layout.
    TargetGlimpse,
    /// The residual seen through the layout.
    ResidualGlimpse,
    /// The canvas again, for the on/off prior.
    OnoffPrior,
    /// The canvas seen through the layout, for the stroke prior.
    CanvasGlimpse,
}

impl Call {
    /// All calls, in the order of the numbers `call as usize`.
    pub const ALL: [Call; 7] = [
        Call::Target,
        Call::Canvas,
        Call::Residual,
        Call::TargetGlimpse,
        Call::ResidualGlimpse,
        Call::OnoffPrior,
        Call::CanvasGlimpse,
    ];
}

/// Dropout behind the convolutions.
#[derive(Clone)]
pub enum Dropout {
    /// Off: evaluation mode.
    Off,
    /// Masks drawn from these numbers.
    Random(Rng),
    /// Given masks of zeros and ones, `[T, B, features of the convolutions]` for each of [`Call::ALL`].
    Given(Vec<Tensor>),
}

impl Dropout {
    fn keep(&self, rate: f64, t: usize, call: Call) -> Keep {
        match self {
            Dropout::Off => Keep::All,
            _ if rate == 0.0 => Keep::All,
            Dropout::Random(rng) => {
                Keep::Random { rate, rng: *rng, stream: Stream(DROPOUT + (t * Call::ALL.len() + call as usize) as u32) }
            }
            Dropout::Given(masks) => Keep::Given(step(&masks[call as usize], t), rate),
        }
    }
}

/// How a pass is to be made.
#[derive(Clone)]
pub struct Pass {
    /// The random numbers.
    pub noise: Noise,
    /// Dropout.
    pub dropout: Dropout,
    /// Leave out what stopped images no longer need. Exact: losses and gradients stay the same.
    pub skip_stopped: bool,
    /// Run the baseline network, which only training needs.
    pub baseline: bool,
    /// Ask the tape to keep the gradients of the values of every step (for tests).
    pub watch: bool,
}

/// Everything inferred and drawn in one step. Log densities are masked: 0 once the drawing has stopped.
#[derive(Clone, Copy)]
pub struct Step<'t> {
    /// Φ_I(x) `[B, F]`.
    pub target_embedding: Var<'t>,
    /// Φ_I(C_t) `[B, F]`.
    pub canvas_embedding: Var<'t>,
    /// Φ_R(x − C_t) `[B, F]`.
    pub residual_embedding: Var<'t>,
    /// ΣD_t / Σx `[B]`.
    pub ratio: Var<'t>,
    /// hˡ `[B, H]`.
    pub layout_state: Var<'t>,
    /// o of the step before `[B]`.
    pub mask: Var<'t>,
    /// Posterior probability of drawing on `[B]`.
    pub onoff_prob: Var<'t>,
    /// o `[B]`, 0 or 1.
    pub onoff: Var<'t>,
    /// log q(o) `[B]`.
    pub logq_onoff: Var<'t>,
    /// Posterior of the layout `[B, 9]`: means 4, standard deviations 4, coupling.
    pub layout_posterior: Var<'t>,
    /// l `[B, 4]`: shift x, shift y, scale, rotation.
    pub layout: Var<'t>,
    /// log q(l) `[B]`.
    pub logq_layout: Var<'t>,
    /// ω1 as predicted at this step `[B, 1]`; that of step 0 is used.
    pub canvas_slope: Var<'t>,
    /// The target through the layout `[B, H, W]`.
    pub target_glimpse: Var<'t>,
    /// The residual through the layout `[B, H, W]`.
    pub residual_glimpse: Var<'t>,
    /// The canvas through the layout `[B, H, W]`.
    pub canvas_glimpse: Var<'t>,
    /// Its embedding `[B, F]`.
    pub target_glimpse_embedding: Var<'t>,
    /// Its embedding `[B, F]`.
    pub residual_glimpse_embedding: Var<'t>,
    /// Its embedding `[B, F]`.
    pub canvas_glimpse_embedding: Var<'t>,
    /// hˢ `[B, H]`.
    pub stroke_state: Var<'t>,
    /// Posterior of the stroke `[B, 5J]`: means 2J, standard deviations 2J, couplings J.
    pub stroke_posterior: Var<'t>,
    /// s `[B, 2J]`: control points in the glimpse frame, x0, y0, x1, …
    pub stroke: Var<'t>,
    /// log q(s) `[B]`.
    pub logq_stroke: Var<'t>,
    /// Pen width σ and stroke slope ω0 `[B, 2]`.
    pub pen: Var<'t>,
    /// State of the baseline network `[B, H]`, where it is run.
    pub baseline_state: Option<Var<'t>>,
    /// b `[B]`, where the baseline network is run.
    pub baseline: Option<Var<'t>>,
    /// Φ_I(C_t) for the on/off prior `[B, F]`.
    pub onoff_prior_embedding: Var<'t>,
    /// Prior probability of drawing on `[B]`.
    pub onoff_prior_prob: Var<'t>,
    /// Output of the layout prior's network, before its constraints `[B, 10K]`.
    pub layout_prior_raw: Var<'t>,
    /// Output of the stroke prior's network, before its constraints `[B, 6JK]`.
    pub stroke_prior_raw: Var<'t>,
    /// log p(o) `[B]`.
    pub logp_onoff: Var<'t>,
    /// log p(l) `[B]`.
    pub logp_layout: Var<'t>,
    /// log p(s) `[B]`.
    pub logp_stroke: Var<'t>,
    /// r, the stroke alone `[B, H, W]`.
    pub stroke_image: Var<'t>,
    /// The canvas after this step `[B, H, W]`; a constant but for the last.
    pub canvas: Var<'t>,
}

impl<'t> Step<'t> {
    /// k_t `[B]`: single-sample estimate of the divergence of this step's latents (section 8).
    pub fn kl(&self) -> Var<'t> {
        let pairs = [
            (self.logq_onoff, self.logp_onoff),
            (self.logq_layout, self.logp_layout),
            (self.logq_stroke, self.logp_stroke),
        ];
        ops::combine(&pairs.map(|(q, p)| [(1.0, q), (-1.0, p)]).concat())
    }
}

/// Row t of `[T, B, …]`.
fn step(all: &Tensor, t: usize) -> Tensor {
    all.rows(t, 1).reshape(&all.shape()[1..])
}

impl Model {
    /// Infers and draws T strokes for every image of x `[B, H, W]`.
    #[track_caller]
    pub fn recognise<'t>(&self, tape: &'t Tape<'t>, x: &Tensor, pass: &Pass) -> Vec<Step<'t>> {
        let c = &self.config;
        let (device, b) = (tape.device(), x.shape()[0]);
        assert_eq!(x.shape(), [b, c.image, c.image], "recognise: images of the wrong size");
        let zeros = |n: usize| tape.constant(Tensor::zeros(device, &[b, n]));
        let watch = |v: Var<'t>| if pass.watch { v.watch() } else { v };
        let settings =
            RenderSettings { placement: c.placement, side: c.image, samples: c.samples, norm_floor: c.norm_floor };

        let x = tape.constant(x.clone());
        let target = self.image_cnn.convolve(x, None);
        let mut canvas = tape.constant(Tensor::zeros(device, &[b, c.image, c.image]));
        let mut residual = x;
        let mut total: Option<Var> = None;
        let mut on = tape.constant(Tensor::full(device, &[b], 1.0));
        let (mut layout, mut stroke) = (zeros(4), zeros(c.stroke_dim()));
        let (mut h_layout, mut h_stroke, mut h_base) = (zeros(c.hidden), zeros(c.hidden), zeros(c.hidden));
        let mut first_slope: Option<Var> = None;
        let mut same_target: Option<Var> = None;
        let mut steps = Vec::with_capacity(c.strokes);
        for t in 0..c.strokes {
            let keep = |call| pass.dropout.keep(c.dropout, t, call);
            let mask = on;
            let (mask_value, skip) = (mask.value(), pass.skip_stopped);
            let live = skip.then_some(&mask_value);

            // What is seen before this stroke. Without dropout the target looks the same at every step.
            let seen = [target, self.image_cnn.convolve(canvas, live)];
            let mut calls = vec![(1, keep(Call::Canvas)), (1, keep(Call::OnoffPrior))];
            if same_target.is_none() {
                calls.push((0, keep(Call::Target)));
            }
            let embeddings = self.image_cnn.embed(&seen, calls, if t == 0 { None } else { live });
            let (e_canvas, e_prior) = (embeddings[0], embeddings[1]);
            let e_target = same_target.unwrap_or_else(|| embeddings[2]).rows(0, b);
            if matches!(keep(Call::Target), Keep::All) {
                same_target = same_target.or_else(|| Some(embeddings[2]));
            }
            let e_residual = self.residual_cnn.convolve(residual, live);
            let e_residual = self.residual_cnn.embed(&[e_residual], vec![(0, keep(Call::Residual))], live)[0];
            let (e_target, e_canvas) = (watch(e_target), watch(e_canvas));
            let (e_prior, e_residual) = (watch(e_prior), watch(e_residual));
            let ratio = tape.constant(ops::residual_ratio(&residual.value(), &x.value()));

            // Whether to draw, and where.
            h_layout = watch(self.layout_gru.forward(h_layout, &[layout, e_canvas]));
            let prob = self.onoff_posterior.forward(concat(&[e_residual, ratio])).squash(&Squash::onoff());
            let prob = watch(prob.onoff_probability(&mask_value));
            on = tape.constant(ops::sample_onoff(&prob.value(), &step(&pass.noise.onoff_u, t), &mask_value));
            let on_value = on.value();
            let logq_onoff = watch(prob.bernoulli_logpdf(&on_value, &mask_value, c.bernoulli_eps));
            let layout_inputs = concat(&[h_layout, e_target, e_residual, ratio]);
            let layout_posterior = watch(self.layout_posterior.forward(layout_inputs).squash(&Squash::layout()));
            let (layout_before, stroke_before) = (layout, stroke);
            layout = watch(layout_posterior.gaussian_sample(&step(&pass.noise.layout_eps, t), 1));
            let logq_layout = watch(layout.gaussian_logpdf(layout_posterior, 1, Some(&on_value)));
            let canvas_slope = watch(self.canvas_slope.forward(layout_inputs).squash(&Squash::canvas_slope()));
            let slope = *first_slope.get_or_insert(canvas_slope);

            // What is seen through the layout.
            let live = skip.then_some(&on_value);
            let matrix = layout.affine();
            let glimpse = |image: Var<'t>| image.stn(matrix, live);
            let (target_glimpse, canvas_glimpse, residual_glimpse) = (glimpse(x), glimpse(canvas), glimpse(residual));
            let seen = [target_glimpse, canvas_glimpse].map(|g| self.image_cnn.convolve(g, live));
            let calls = vec![(0, keep(Call::TargetGlimpse)), (1, keep(Call::CanvasGlimpse))];
            let [e_glimpse, e_canvas_glimpse] = self.image_cnn.embed(&seen, calls, live)[..] else { unreachable!() };
            let e_residual_glimpse = self.residual_cnn.convolve(residual_glimpse, live);
            let calls = vec![(0, keep(Call::ResidualGlimpse))];
            let e_residual_glimpse = self.residual_cnn.embed(&[e_residual_glimpse], calls, live)[0];
            let (e_glimpse, e_residual_glimpse) = (watch(e_glimpse), watch(e_residual_glimpse));
            let e_canvas_glimpse = watch(e_canvas_glimpse);

            // The stroke and the pen.
            h_stroke = watch(self.stroke_gru.forward(h_stroke, &[stroke, e_canvas]));
            let stroke_inputs = concat(&[h_stroke, e_glimpse, e_residual_glimpse]);
            let stroke_posterior = self.stroke_posterior.forward(stroke_inputs).squash(&Squash::stroke(c.points));
            let stroke_posterior = watch(stroke_posterior);
            stroke = watch(stroke_posterior.gaussian_sample(&step(&pass.noise.stroke_eps, t), c.points));
            let logq_stroke = watch(stroke.gaussian_logpdf(stroke_posterior, c.points, Some(&on_value)));
            let pen = watch(self.pen.forward(concat(&[stroke_inputs, layout])).squash(&Squash::pen(c.pen_low())));

            // The baseline sees the step before, and nothing learns through its inputs.
            let baseline = pass.baseline.then(|| {
                let inputs = [e_target, mask, layout_before, stroke_before, e_canvas].map(Var::detach);
                h_base = watch(self.baseline_gru.forward(h_base, &inputs));
                (h_base, watch(self.baseline.forward(h_base).reshape(&[b]) * mask))
            });

            // The prior at the sampled values, given the canvas before this stroke (section 3).
            let prior_prob = self.onoff_prior.forward(e_prior).squash(&Squash::onoff()).reshape(&[b]);
            let prior_prob = watch(prior_prob);
            let logp_onoff = watch(prior_prob.bernoulli_logpdf(&on_value, &mask_value, c.bernoulli_eps));
            let layout_prior_raw = watch(self.layout_prior.forward(h_layout));
            let layout_prior = layout_prior_raw.squash(&Squash::layout_prior(c.components));
            let logp_layout = watch(layout.mixture_logpdf(layout_prior, 1, c.components, Some(&on_value)));
            let stroke_prior_raw = watch(self.stroke_prior.forward(concat(&[h_stroke, layout, e_canvas_glimpse])));
            let stroke_prior = stroke_prior_raw.squash(&Squash::stroke_prior(c.points, c.components));
            let logp_stroke = watch(stroke.mixture_logpdf(stroke_prior, c.points, c.components, Some(&on_value)));

            // The drawing. Canvases on the way are constants; the last carries the gradient of all strokes.
            let placed = match c.placement {
                Placement::Points => matrix,
                Placement::Warp => layout.inverse_affine(),
            };
            let stroke_image = watch(render_stroke(stroke, placed, pen, &on_value, settings));
            let sum = total.map_or(stroke_image, |total| total + stroke_image);
            total = Some(sum);
            canvas = if t + 1 < c.strokes {
                sum.detach().tanh_ratio(slope.detach().reshape(&[b]))
            } else {
                sum.tanh_ratio(slope.reshape(&[b]))
            };
            residual = (x - canvas).detach();

            steps.push(Step {
                target_embedding: e_target,
                canvas_embedding: e_canvas,
                residual_embedding: e_residual,
                ratio,
                layout_state: h_layout,
                mask,
                onoff_prob: prob,
                onoff: on,
                logq_onoff,
                layout_posterior,
                layout,
                logq_layout,
                canvas_slope,
                target_glimpse,
                residual_glimpse,
                canvas_glimpse,
                target_glimpse_embedding: e_glimpse,
                residual_glimpse_embedding: e_residual_glimpse,
                canvas_glimpse_embedding: e_canvas_glimpse,
                stroke_state: h_stroke,
                stroke_posterior,
                stroke,
                logq_stroke,
                pen,
                baseline_state: baseline.map(|(state, _)| state),
                baseline: baseline.map(|(_, value)| value),
                onoff_prior_embedding: e_prior,
                onoff_prior_prob: prior_prob,
                layout_prior_raw,
                stroke_prior_raw,
                logp_onoff,
                logp_layout,
                logp_stroke,
                stroke_image,
                canvas,
            });
        }
        steps
    }
}
