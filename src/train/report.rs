//! What is told of an update.

use crate::model::objective::Totals;

/// The numbers of a [`Report`], each once: fields, names, and values in their order.
macro_rules! report {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Numbers of one update: means over the batch, in nats where they are densities.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Report {
            $($(#[$doc])* pub $name: f32,)*
        }

        impl Report {
            /// The names of [`Report::values`].
            pub const NAMES: [&str; [$(stringify!($name)),*].len()] = [$(stringify!($name)),*];

            /// All numbers, in the order of [`Report::NAMES`].
            pub fn values(&self) -> [f32; Self::NAMES.len()] {
                [$(self.$name),*]
            }

        }
    };
}

report! {
    /// What was minimised.
    loss,
    /// Evidence lower bound.
    elbo,
    /// log p(x | canvas).
    log_likelihood,
    /// log q − log p of the on/off decisions, summed over an image.
    kl_onoff,
    /// The same of the layouts.
    kl_layout,
    /// The same of the strokes.
    kl_stroke,
    /// Strokes per image.
    strokes,
    /// Posterior probability of drawing on, where it was still open.
    onoff_probability,
    /// Squared error of the baseline.
    baseline_term,
    /// The REINFORCE term.
    score_term,
    /// Euclidean norm of the gradient of all parameters.
    gradient_norm,
}

impl Report {
    /// From totals over so many images.
    pub(super) fn new(loss: f64, gradient_norm: f64, totals: &Totals<f64>, images: usize) -> Self {
        let mean = |total: f64| (total / images as f64) as f32;
        let t = totals;
        Report {
            loss: loss as f32,
            elbo: mean(t.elbo),
            log_likelihood: mean(t.log_likelihood),
            // What is left of the divergence.
            kl_onoff: mean(t.log_likelihood - t.elbo - t.kl_layout - t.kl_stroke),
            kl_layout: mean(t.kl_layout),
            kl_stroke: mean(t.kl_stroke),
            strokes: mean(t.strokes),
            onoff_probability: (t.probability / t.open) as f32,
            baseline_term: mean(t.baseline_term),
            score_term: mean(t.score_term),
            gradient_norm: gradient_norm as f32,
        }
    }
}
