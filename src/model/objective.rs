//! What training minimises (section 8), and the importance-weighted bound (section 11a).

use super::{Dropout, Model, Noise, Pass, Step};
use crate::{
    Params, Tape, Tensor, Var,
    ops::{
        self,
        nvil::{self, Advantage},
    },
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
    /// The mean over the batch of `score_term − elbo + baseline_term`, shape `[1]`: differentiate this.
    pub loss: Var<'t>,
    /// The same per image.
    pub per_image: Var<'t>,
    /// log p(x | C_T).
    pub log_likelihood: Var<'t>,
    /// `log_likelihood − Σ_t k_t`.
    pub elbo: Var<'t>,
    /// k_t, one per step.
    pub kl: Vec<Var<'t>>,
    /// The REINFORCE term.
    pub score_term: Var<'t>,
    /// The baseline's squared error.
    pub baseline_term: Var<'t>,
    /// Learning signal, advantage and running statistics.
    pub nvil: Advantage,
}

impl Model {
    /// log p(x | canvas) `[B]`: density of the images around the last canvas.
    pub fn log_likelihood<'t>(&self, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
        let canvas = steps.last().expect("at least one stroke").after.shown;
        let tape = canvas.tape();
        canvas.image_logpdf(x, tape.param(self.raw_scale), self.config.likelihood)
    }

    /// The training loss for images x `[B, H, W]` after a pass with the baseline.
    #[track_caller]
    pub fn loss<'t>(&self, x: &Tensor, steps: &[Step<'t>], running: &Running) -> Loss<'t> {
        let tape = steps[0].mask.tape();
        let log_likelihood = self.log_likelihood(x, steps);
        let kl: Vec<Var> = steps.iter().map(Step::kl).collect();
        let stack = |value: &dyn Fn(&Step<'t>) -> Var<'t>| ops::stack(&steps.iter().map(value).collect::<Vec<_>>());
        let (all_kl, mask, logq) = (ops::stack(&kl), stack(&|s| s.mask), stack(&|s| s.logq.onoff));
        let baseline = stack(&|s| s.baseline.expect("the loss needs a pass with the baseline"));
        let nvil = nvil::advantage(
            &all_kl.value(),
            &log_likelihood.value(),
            &mask.value(),
            &baseline.value(),
            self.config.beta,
            &running.statistics,
            running.iteration,
        );
        let elbo = log_likelihood - all_kl.sum_rows();
        let score_term = (mask * tape.constant(nvil.normalised.clone()) * logq).sum_rows();
        let error = baseline - tape.constant(nvil.signal.clone());
        let baseline_term = (mask * error * error).sum_rows();
        let per_image = ops::combine(&[(1.0, score_term), (-1.0, elbo), (1.0, baseline_term)]);
        Loss { loss: per_image.mean(), per_image, log_likelihood, elbo, kl, score_term, baseline_term, nvil }
    }

    /// Importance log weights `[P, B]` of P particles per image of x `[B, H, W]`; noise has P·B images, particle-major.
    pub fn log_weights(&self, params: &Params, x: &Tensor, particles: usize, noise: Noise) -> Tensor {
        let repeated = Tensor::stack(&vec![x.clone(); particles]);
        let repeated = repeated.reshape(&[&[particles * x.shape()[0]], &x.shape()[1..]].concat());
        let pass = Pass { noise, dropout: Dropout::Off, skip_stopped: true, baseline: false, watch: false };
        let tape = Tape::eval(params);
        let steps = self.recognise(&tape, &repeated, &pass);
        let kl: Vec<Var> = steps.iter().map(Step::kl).collect();
        let weights = self.log_likelihood(&repeated, &steps) - ops::stack(&kl).sum_rows();
        weights.value().reshape(&[particles, x.shape()[0]])
    }
}
