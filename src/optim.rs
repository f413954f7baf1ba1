//! Adam over the whole slab, with one learning rate per group.

use crate::{
    Grads, Params, Tensor, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    kernels::adam::{BETA1, BETA2, EPS},
    real::Real,
};
use rayon::prelude::*;

/// How learning rates change in the course of a run: they rise linearly, and fall as half a cosine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Updates over which they rise.
    pub warmup: u64,
    /// Updates after which they have fallen.
    pub updates: u64,
    /// The part that is left then; 1 for no fall.
    pub end: f64,
}

impl Schedule {
    /// They stay what they are.
    pub const CONSTANT: Schedule = Schedule { warmup: 0, updates: 1, end: 1.0 };

    /// What rates are multiplied with in an update, counted from 1:
    /// min(1, update / warmup) · (end + (1 − end)·½(1 + cos(π·min(1, update / updates)))).
    pub fn factor(&self, update: u64) -> f64 {
        let part = |of: u64| if of == 0 { 1.0 } else { (update as f64 / of as f64).min(1.0) };
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * part(self.updates)).cos());
        part(self.warmup) * (self.end + (1.0 - self.end) * fall)
    }
}

/// Adam (Kingma & Ba, 2015) without weight decay: β₁ = 0.9, β₂ = 0.999, ε = 1e-8 as in section 9 of the specification.
pub struct Adam {
    m: Tensor,
    v: Tensor,
    step: u64,
    rates: Vec<f64>,
    schedule: Schedule,
}

impl Adam {
    /// Zero moments; `rates[g]` is the learning rate of group g.
    pub fn new(params: &Params, rates: &[f64]) -> Self {
        let groups = params.specs().iter().map(|s| s.group + 1).max().unwrap_or(0);
        assert!(groups <= rates.len(), "adam: {groups} groups but {} learning rates", rates.len());
        let zeros = || Tensor::zeros(params.device(), params.slab().shape());
        Adam { m: zeros(), v: zeros(), step: 0, rates: rates.to_vec(), schedule: Schedule::CONSTANT }
    }

    /// The same with rates that change.
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Adam { schedule, ..self }
    }

    /// Rates change in another way from the next update on.
    pub fn set_schedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
    }

    /// How many updates were made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Says how many updates were made, where a device counts them itself.
    pub(crate) fn set_steps(&mut self, steps: u64) {
        self.step = steps;
    }

    /// First and second moments, laid out like [`Params::slab`].
    pub fn moments(&self) -> [&Tensor; 2] {
        [&self.m, &self.v]
    }

    /// Continues from saved moments and a saved number of updates.
    pub fn restore(&mut self, m: Tensor, v: Tensor, step: u64) {
        assert!(m.shape() == self.m.shape() && v.shape() == self.v.shape(), "adam: moments of another model");
        (self.m, self.v, self.step) = (m, v, step);
    }

    /// One update: with t the number of updates including this one, and rates as the schedule has them,
    /// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², p ← p − rate · (m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε).
    pub fn step(&mut self, params: &mut Params, grads: &Grads) {
        self.step_if(params, grads, None);
    }

    /// As [`Adam::step`]; on a GPU nothing is changed where the number in `healthy` is 0, and the number of updates is that of the
    /// host plus the clock.
    pub(crate) fn step_if(&mut self, params: &mut Params, grads: &Grads, healthy: Option<&Tensor>) {
        self.step += 1;
        let t = self.step as f64;
        let factor = self.schedule.factor(self.step);
        let (correct1, correct2) = (1.0 / (1.0 - BETA1.powf(t)), 1.0 / (1.0 - BETA2.powf(t)));
        let specs = params.specs().to_vec();
        let device = params.device().clone();
        on_device!(device, T => {
            let (m, v) = (self.m.slice_mut::<T>(), self.v.slice_mut::<T>());
            let (p, g) = (params.slab_mut::<T>(), grads.slab().slice::<T>());
            for run in specs.chunk_by(|a, b| a.group == b.group) {
                let range = run[0].range().start..run[run.len() - 1].range().end;
                let rate = T::of(self.rates[run[0].group] * factor * correct1);
                let (b1, b2, c2, eps) = (T::of(BETA1), T::of(BETA2), T::of(correct2), T::of(EPS));
                let (a1, a2) = (T::of(1.0 - BETA1), T::of(1.0 - BETA2));
                let blocks = p[range.clone()].par_chunks_mut(cpu::BLOCK).zip(g[range.clone()].par_chunks(cpu::BLOCK));
                let moments = m[range.clone()].par_chunks_mut(cpu::BLOCK).zip(v[range].par_chunks_mut(cpu::BLOCK));
                blocks.zip(moments).for_each(|((p, g), (m, v))| {
                    cpu::simd(#[inline(always)] || {
                        for i in 0..p.len() {
                            m[i] = b1 * m[i] + a1 * g[i];
                            v[i] = b2 * v[i] + a2 * (g[i] * g[i]);
                            p[i] -= rate * m[i] / ((v[i] * c2).sqrt() + eps);
                        }
                    })
                });
            }
        }, gpu => {
            let Schedule { warmup, updates, end } = self.schedule;
            for run in specs.chunk_by(|a, b| a.group == b.group) {
                let range = run[0].range().start..run[run.len() - 1].range().end;
                let part = |slab: &Tensor| slab.window(range.start, &[range.len()]);
                let (p, m, v, g) = (part(params.slab()), part(&self.m), part(&self.v), part(grads.slab()));
                let rate = Arg::Real(self.rates[run[0].group]);
                let arguments = args![
                    &g, Arg::input(healthy), p.out(), m.out(), v.out(), range.len(), rate, Arg::Wide(self.step), Arg::Words(gpu.clock()),
                    Arg::Wide(warmup), Arg::Wide(updates), Arg::Real(end),
                ];
                gpu.launch("adam", "adam", Launch::elements(range.len()), arguments);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ParamsBuilder, Tape, ops::Activation, ops::concat};

    #[test]
    fn rates_rise_and_fall() {
        let schedule = Schedule { warmup: 10, updates: 100, end: 0.01 };
        let near = |update: u64, wanted: f64| assert!((schedule.factor(update) - wanted).abs() < 1e-3, "{update}");
        near(5, 0.5 * 0.9939);
        near(10, 0.9758);
        near(50, 0.505);
        near(100, 0.01);
        near(1000, 0.01);
        assert_eq!([1, 7, 500_001].map(|update| Schedule::CONSTANT.factor(update)), [1.0; 3]);
    }

    #[test]
    fn adam_learns_xor() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let mut builder = ParamsBuilder::new();
            let mut i = 0;
            let mut noise = |_| {
                i += 1;
                crate::rng::Rng::new(3, 0).normal(crate::rng::Stream(0), i)
            };
            let w = builder.add("w", &[8, 2], &mut noise);
            let b = builder.add("b", &[8], |_| 0.0);
            let w2 = builder.add("w2", &[1, 8], &mut noise);
            let b2 = builder.add("b2", &[1], |_| 0.0);
            let mut params = builder.build(&device);
            let (mut grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[0.03]));
            let mut last = f64::NAN;
            for _ in 0..400 {
                grads.clear();
                let tape = Tape::new(&params);
                let x = tape.constant(Tensor::from_f64(&device, &[4, 2], &[0., 0., 0., 1., 1., 0., 1., 1.]));
                let target = tape.constant(Tensor::from_f64(&device, &[4, 1], &[-1., 1., 1., -1.]));
                let p = |id| tape.param(id);
                let hidden = concat(&[x]).linear(p(w), p(b), Activation::Tanh);
                let error = hidden.linear(p(w2), p(b2), Activation::Tanh) - target;
                let loss = (error * error).mean();
                last = loss.value().item();
                tape.backward(loss, &mut grads);
                drop(tape);
                adam.step(&mut params, &grads);
            }
            assert!(last < 0.05, "loss {last}");
        }
    }
}
