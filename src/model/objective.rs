//! What training minimises (section 8), and the importance-weighted bound (section 11a).

use super::{Dropout, Each, Model, Noise, Pass, Step, Stop};
use crate::{
    Params, Tape, Tensor, Var,
    ops::{
        self, PIXEL_SCALE,
        nvil::{self, Advantage},
    },
    real::Real,
};

/// The running mean and variance of the learning signal, on the device, and whether they hold anything yet.
#[derive(Clone)]
pub struct Running {
    /// (c, v) `[2]`.
    pub statistics: Tensor,
    /// The number of updates so far: the first one sets c and v.
    pub iteration: u64,
}

/// The loss and its parts; `[B]` unless said otherwise.
pub struct Loss<'t> {
    /// The mean over the batch of `per_image`, shape `[1]`: differentiate this.
    pub loss: Var<'t>,
    /// `score_term − elbo + baseline_term`; with the exact stop `−elbo`, and the price of what is drawn.
    pub per_image: Var<'t>,
    /// log p(x | C_T); with the exact stop log p(x | C_n) for all ends, `[T + 1, B]`.
    pub log_likelihood: Var<'t>,
    /// `log_likelihood − Σ_t k_t`, or its mean over all ends.
    pub elbo: Var<'t>,
    /// k_t, one per step; with the exact stop without that of the decision.
    pub kl: Vec<Var<'t>>,
    /// How the sampled decision to stop learns.
    pub nvil: Option<Nvil<'t>>,
}

/// The score-function term and its baseline (section 8), `[B]`.
pub struct Nvil<'t> {
    /// The REINFORCE term.
    pub score_term: Var<'t>,
    /// The baseline's squared error.
    pub baseline_term: Var<'t>,
    /// Learning signal, advantage and running statistics.
    pub advantage: Advantage,
}

/// Terms of a total over a batch: a factor, and a value for each image.
pub type Terms<'t> = Vec<(f64, Var<'t>)>;

/// What an update tells of its batch, as totals over images: to be summed up ([`Terms`]), or numbers.
#[derive(Clone, Debug)]
pub struct Totals<V> {
    /// See [`Loss::elbo`].
    pub elbo: V,
    /// log p(x | canvas), where the drawing ends.
    pub log_likelihood: V,
    /// See [`Nvil::score_term`].
    pub score_term: V,
    /// See [`Nvil::baseline_term`].
    pub baseline_term: V,
    /// log q − log p of the layouts.
    pub kl_layout: V,
    /// The same of the strokes.
    pub kl_stroke: V,
    /// Strokes.
    pub strokes: V,
    /// Probability of drawing on, where that was open.
    pub probability: V,
    /// In how many steps that was open.
    pub open: V,
}

impl<V> Totals<V> {
    /// The same of another kind, in the order of the fields.
    pub fn map<U>(self, mut f: impl FnMut(V) -> U) -> Totals<U> {
        Totals {
            elbo: f(self.elbo),
            log_likelihood: f(self.log_likelihood),
            score_term: f(self.score_term),
            baseline_term: f(self.baseline_term),
            kl_layout: f(self.kl_layout),
            kl_stroke: f(self.kl_stroke),
            strokes: f(self.strokes),
            probability: f(self.probability),
            open: f(self.open),
        }
    }
}

fn stack<'t>(steps: &[Step<'t>], value: impl Fn(&Step<'t>) -> Var<'t>) -> Var<'t> {
    ops::stack(&steps.iter().map(value).collect::<Vec<_>>())
}

impl Model {
    /// log p(x | canvas) `[B]`: density of the images around the last canvas.
    pub fn log_likelihood<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
        self.density(x, steps.last().expect("at least one stroke").after.shown)
    }

    /// The scale v of every pixel in the likelihood (section 7), row by row.
    pub fn pixel_scales(&self, params: &Params) -> Vec<f64> {
        let (low, high) = PIXEL_SCALE;
        params.get(self.raw_scale).to_f64().into_iter().map(|w| low + (high - low) * Real::sigmoid(w)).collect()
    }

    /// log p(x | canvas) after 0, 1, … T strokes, `[T + 1, B]`.
    pub fn log_likelihoods<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
        let blank = steps[0].mask.tape().constant(Tensor::zeros(x.device(), x.shape()));
        let canvases = std::iter::once(blank).chain(steps.iter().map(|s| s.after.shown));
        ops::stack(&canvases.map(|canvas| self.density(x, canvas)).collect::<Vec<_>>())
    }

    /// log p(x | canvas) `[B]`: density of the images x `[B, H, W]` around any canvas `[B, H, W]`.
    pub(crate) fn density<'t>(&self, x: &Tensor, canvas: Var<'t>) -> Var<'t> {
        canvas.image_logpdf(x, canvas.tape().param(self.raw_scale), self.config.likelihood)
    }

    /// How a pass is made that the model learns from.
    pub fn lesson(&self, noise: Noise, dropout: Dropout) -> Pass {
        let sampled = self.config.stop == Stop::Nvil;
        Pass { noise, dropout, skip_stopped: true, baseline: sampled, hold: !sampled, watch: false, copies: 1 }
    }

    /// The training loss for images x `[B, H, W]` after a pass as [`Model::lesson`] has it.
    #[track_caller]
    pub fn loss<'t>(&self, x: &Tensor, steps: &[Step<'t>], running: &Running) -> Loss<'t> {
        match self.config.stop {
            Stop::Nvil => self.sampled_loss(x, steps, running),
            Stop::Exact => self.exact_loss(x, steps),
        }
    }

    #[track_caller]
    fn sampled_loss<'t>(&self, x: &Tensor, steps: &[Step<'t>], running: &Running) -> Loss<'t> {
        let tape = steps[0].mask.tape();
        let log_likelihood = self.log_likelihood(x, steps);
        let kl: Vec<Var> = steps.iter().map(Step::kl).collect();
        let (all_kl, mask, logq) = (ops::stack(&kl), stack(steps, |s| s.mask), stack(steps, |s| s.logq.onoff));
        let baseline = stack(steps, |s| s.baseline.expect("the loss needs a pass with the baseline"));
        let advantage = nvil::advantage(
            &all_kl.value(),
            &log_likelihood.value(),
            &mask.value(),
            &baseline.value(),
            self.config.beta,
            &running.statistics,
            running.iteration,
        );
        let elbo = log_likelihood - all_kl.sum_rows();
        let score_term = (mask * tape.constant(advantage.normalised.clone()) * logq).sum_rows();
        let error = baseline - tape.constant(advantage.signal.clone());
        let baseline_term = (mask * error * error).sum_rows();
        let per_image = ops::combine(&[(1.0, score_term), (-1.0, elbo), (1.0, baseline_term)]);
        let nvil = Some(Nvil { score_term, baseline_term, advantage });
        Loss { loss: per_image.mean(), per_image, log_likelihood, elbo, kl, nvil }
    }

    /// The evidence lower bound of each image of x `[B, H, W]` after a pass as [`Model::lesson`] has it, the baseline aside: of what was
    /// drawn, or its mean over all ends.
    #[track_caller]
    pub fn elbo<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
        match self.config.stop {
            Stop::Nvil => self.log_weight(x, steps),
            Stop::Exact => self.exact_loss(x, steps).elbo,
        }
    }

    /// log p(x, z) − log q(z | x) `[B]`.
    fn log_weight<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
        self.log_likelihood(x, steps) - ops::stack(&steps.iter().map(Step::kl).collect::<Vec<_>>()).sum_rows()
    }

    /// The mean over all ends: every canvas on the way may be the last.
    #[track_caller]
    fn exact_loss<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Loss<'t> {
        let log_likelihood = self.log_likelihoods(x, steps);
        let kl: Vec<Var> = steps.iter().map(Step::kl_of_stroke).collect();
        let flat = |p: Var<'t>| p.reshape(&[x.shape()[0]]);
        let (p, prior) = (stack(steps, |s| flat(s.onoff_prob)), stack(steps, |s| flat(s.scored_prob())));
        let bound = |cost| ops::prefix_bound(p, prior, cost, log_likelihood, self.config.bernoulli_eps);
        let (cost, price) = (ops::stack(&kl), self.config.price);
        let elbo = bound(cost);
        let per_image = if price == 0.0 { elbo } else { bound(cost + price) } * -1.0;
        Loss { loss: per_image.mean(), per_image, log_likelihood, elbo, kl, nvil: None }
    }

    /// What is told of the batch of `steps` and their `loss`.
    pub fn totals<'t>(&self, loss: &Loss<'t>, steps: &[Step<'t>]) -> Totals<Terms<'t>> {
        match &loss.nvil {
            Some(nvil) => sampled_totals(loss, nvil, steps),
            None => expected_totals(loss, steps),
        }
    }

    /// Importance log weights `[P, B]` of P particles per image of x `[B, H, W]`; noise has P·B images, particle-major.
    pub fn log_weights(&self, params: &Params, x: &Tensor, particles: usize, noise: Noise) -> Tensor {
        let repeated = Tensor::stack(&vec![x.clone(); particles]);
        let repeated = repeated.reshape(&[&[particles * x.shape()[0]], &x.shape()[1..]].concat());
        let pass = Pass::plain(noise);
        let tape = Tape::eval(params);
        let steps = self.recognise(&tape, &repeated, &pass);
        self.log_weight(&repeated, &steps).value().reshape(&[particles, x.shape()[0]])
    }
}

fn difference<'t>(of: impl Fn(Each<Var<'t>>) -> Var<'t>, step: &Step<'t>) -> [(f64, Var<'t>); 2] {
    [(1.0, of(step.logq)), (-1.0, of(step.scored()))]
}

fn sampled_totals<'t>(loss: &Loss<'t>, nvil: &Nvil<'t>, steps: &[Step<'t>]) -> Totals<Terms<'t>> {
    let all = |value: fn(&Step<'t>) -> Var<'t>| steps.iter().map(|step| (1.0, value(step))).collect();
    let kl = |of: fn(Each<Var<'t>>) -> Var<'t>| steps.iter().flat_map(|step| difference(of, step)).collect();
    Totals {
        elbo: vec![(1.0, loss.elbo)],
        log_likelihood: vec![(1.0, loss.log_likelihood)],
        score_term: vec![(1.0, nvil.score_term)],
        baseline_term: vec![(1.0, nvil.baseline_term)],
        kl_layout: kl(|each| each.layout),
        kl_stroke: kl(|each| each.stroke),
        strokes: all(|s| s.after.z.onoff),
        // Already 0 where the drawing had stopped before.
        probability: all(|s| s.onoff_prob),
        open: all(|s| s.mask),
    }
}

/// Means over where the drawing ends.
fn expected_totals<'t>(loss: &Loss<'t>, steps: &[Step<'t>]) -> Totals<Terms<'t>> {
    let images = loss.elbo.shape();
    let (tape, ends) = (loss.elbo.tape(), loss.log_likelihood.value());
    let end = |n: usize| tape.constant(ends.rows(n, 1).reshape(&images));
    let mut totals = Totals {
        elbo: vec![(1.0, loss.elbo)],
        log_likelihood: vec![(1.0, end(0))],
        score_term: vec![],
        baseline_term: vec![],
        kl_layout: vec![],
        kl_stroke: vec![],
        strokes: vec![],
        probability: vec![],
        open: vec![],
    };
    // Probability that the stroke is drawn.
    let mut drawn = steps[0].mask.detach();
    for (n, step) in steps.iter().enumerate() {
        totals.open.push((1.0, drawn));
        drawn = drawn * tape.constant(step.onoff_prob.value().reshape(&images));
        totals.strokes.push((1.0, drawn));
        totals.probability.push((1.0, drawn));
        totals.log_likelihood.extend([(1.0, drawn * end(n + 1)), (-1.0, drawn * end(n))]);
        let weighted = |(sign, log): (f64, Var<'t>)| (sign, drawn * log.detach());
        totals.kl_layout.extend(difference(|each| each.layout, step).map(weighted));
        totals.kl_stroke.extend(difference(|each| each.stroke, step).map(weighted));
    }
    totals
}
