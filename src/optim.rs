//! How parameters move along their gradients: Adam, AdamW, and gradient descent with momentum, over the whole slab, with one learning rate
//! per group; and how long gradients may be.

use crate::{
    Grads, Params, Tensor, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    kernels::adam::{BETA1, BETA2, EPS},
    real::Real,
};
use rayon::prelude::*;

/// Blocks of a GPU that share the lengths of two slabs; at most the threads of a block of the kernel that adds them up.
const PARTS: usize = 256;

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
    clip: f64,
    /// What the blocks of a GPU have found of the lengths of g and √v; its place must not change in captured steps.
    lengths: Tensor,
}

impl Adam {
    /// Zero moments; `rates[g]` is the learning rate of group g.
    pub fn new(params: &Params, rates: &[f64]) -> Self {
        check_groups("adam", params, rates);
        let zeros = |shape: &[usize]| Tensor::zeros(params.device(), shape);
        let [m, v, lengths] = [params.slab().shape(), params.slab().shape(), &[2 * PARTS]].map(zeros);
        Adam { m, v, step: 0, rates: rates.to_vec(), schedule: Schedule::CONSTANT, clip: 0.0, lengths }
    }

    /// The same with rates that change.
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Adam { schedule, ..self }
    }

    /// The same with gradients no longer than `clip` times what is usual: from the second update on, all of g is multiplied with
    /// min(1, clip · √(Σv / (1−β₂ᵗ⁻¹)) / |g|), where v is that of the updates before. 0 for none.
    pub fn with_clip(self, clip: f64) -> Self {
        Adam { clip, ..self }
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
            let mut shorter = T::of(1.0);
            if self.clip > 0.0 && self.step > 1 {
                let longest = self.clip * (total(v, |v| v) / (1.0 - BETA2.powf(t - 1.0))).sqrt();
                let length = total(g, |g| g * g).sqrt();
                if length > longest {
                    shorter = T::of(longest / length);
                }
            }
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
                            let g = shorter * g[i];
                            m[i] = b1 * m[i] + a1 * g;
                            v[i] = b2 * v[i] + a2 * (g * g);
                            p[i] -= rate * m[i] / ((v[i] * c2).sqrt() + eps);
                        }
                    })
                });
            }
        }, gpu => {
            let Schedule { warmup, updates, end } = self.schedule;
            let lengths = (self.clip > 0.0).then_some(&self.lengths);
            if let Some(lengths) = lengths {
                let arguments = args![grads.slab(), &self.v, lengths.out(), grads.slab().len()];
                gpu.launch("adam", "lengths", Launch::rows(PARTS, 256), arguments);
            }
            for run in specs.chunk_by(|a, b| a.group == b.group) {
                let range = run[0].range().start..run[run.len() - 1].range().end;
                let part = |slab: &Tensor| slab.window(range.start, &[range.len()]);
                let (p, m, v, g) = (part(params.slab()), part(&self.m), part(&self.v), part(grads.slab()));
                let rate = Arg::Real(self.rates[run[0].group]);
                let arguments = args![
                    &g, Arg::input(healthy), p.out(), m.out(), v.out(), range.len(), rate, Arg::Wide(self.step), Arg::Words(gpu.clock()),
                    Arg::Wide(warmup), Arg::Wide(updates), Arg::Real(end), Arg::input(lengths), PARTS, Arg::Real(self.clip),
                ];
                gpu.launch("adam", "adam", Launch::elements(range.len()), arguments);
            }
        });
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019): p ← p·(1 − rate·λ), then Adam's update.
pub struct AdamW {
    adam: Adam,
    decay: f64,
}

impl AdamW {
    /// Decays by `decay` (λ) what `adam` updates; its rates and its schedule are those of the decay, too.
    pub fn new(adam: Adam, decay: f64) -> Self {
        AdamW { adam, decay }
    }

    /// The Adam in it: its number of updates, its moments, what it takes to go on.
    pub fn adam(&mut self) -> &mut Adam {
        &mut self.adam
    }

    /// One update.
    pub fn step(&mut self, params: &mut Params, grads: &Grads) {
        let factor = self.adam.schedule.factor(self.adam.step + 1);
        for (range, group) in runs(params) {
            let factor = 1.0 - self.adam.rates[group] * factor * self.decay;
            let device = params.device().clone();
            on_device!(device, T => scale(&mut params.slab_mut::<T>()[range], factor), gpu => {
                scale_on_gpu(gpu, &params.slab().window(range.start, &[range.len()]), factor);
            });
        }
        self.adam.step(params, grads);
    }
}

/// Stochastic gradient descent with momentum: v ← μ·v + g + λ·p, p ← p − rate·v.
pub struct Sgd {
    velocity: Tensor,
    step: u64,
    rates: Vec<f64>,
    momentum: f64,
    decay: f64,
    schedule: Schedule,
}

impl Sgd {
    /// At rest; `rates[g]` is the learning rate of group g, μ is `momentum` (0 for none), and there is no decay.
    pub fn new(params: &Params, rates: &[f64], momentum: f64) -> Self {
        check_groups("sgd", params, rates);
        let velocity = Tensor::zeros(params.device(), params.slab().shape());
        Sgd { velocity, step: 0, rates: rates.to_vec(), momentum, decay: 0.0, schedule: Schedule::CONSTANT }
    }

    /// The same with weight decay λ.
    pub fn with_decay(self, decay: f64) -> Self {
        Sgd { decay, ..self }
    }

    /// The same with rates that change.
    pub fn with_schedule(self, schedule: Schedule) -> Self {
        Sgd { schedule, ..self }
    }

    /// How many updates were made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// v, laid out like [`Params::slab`].
    pub fn velocity(&self) -> &Tensor {
        &self.velocity
    }

    /// Continues from a saved velocity and a saved number of updates.
    #[track_caller]
    pub fn restore(&mut self, velocity: Tensor, step: u64) {
        assert_eq!(velocity.shape(), self.velocity.shape(), "sgd: the velocity of another model");
        (self.velocity, self.step) = (velocity, step);
    }

    /// One update.
    pub fn step(&mut self, params: &mut Params, grads: &Grads) {
        self.step += 1;
        let factor = self.schedule.factor(self.step);
        for (range, group) in runs(params) {
            let rate = self.rates[group] * factor;
            let device = params.device().clone();
            on_device!(device, T => {
                let (p, v) = (&mut params.slab_mut::<T>()[range.clone()], &mut self.velocity.slice_mut::<T>()[range.clone()]);
                let g = &grads.slab().slice::<T>()[range];
                let [rate, momentum, decay] = [rate, self.momentum, self.decay].map(T::of);
                cpu::each_row_of_two(p, v, [cpu::BLOCK; 2], 1, #[inline(always)] |block, p, v| {
                    let g = &g[block * cpu::BLOCK..][..p.len()];
                    for i in 0..p.len() {
                        v[i] = momentum * v[i] + g[i] + decay * p[i];
                        p[i] -= rate * v[i];
                    }
                });
            }, gpu => {
                let part = |slab: &Tensor| slab.window(range.start, &[range.len()]);
                let (g, p, v) = (part(grads.slab()), part(params.slab()), part(&self.velocity));
                let [rate, momentum, decay] = [rate, self.momentum, self.decay].map(Arg::Real);
                let args = args![&g, p.out(), v.out(), range.len(), rate, momentum, decay];
                gpu.launch("optim", "sgd", Launch::elements(range.len()), args);
            });
        }
    }
}

/// Makes gradients shorter, all by the same factor, if their common Euclidean norm is more than `most`; returns the norm that they had.
/// Waits for the device. A norm that is not finite changes nothing: it is the caller's to look at.
pub fn clip_norm(grads: &mut Grads, most: f64) -> f64 {
    let norm = grads.slab().to_f64().iter().map(|g| g * g).sum::<f64>().sqrt();
    if norm > most && norm.is_finite() {
        let (device, factor) = (grads.slab().device().clone(), most / norm);
        on_device!(device, T => scale(grads.slab_mut::<T>(), factor), gpu => scale_on_gpu(gpu, grads.slab(), factor));
    }
    norm
}

fn scale<T: Real>(values: &mut [T], factor: f64) {
    let factor = T::of(factor);
    cpu::each_block(
        values,
        #[inline(always)]
        |_, values| values.iter_mut().for_each(|v| *v *= factor),
    );
}

fn scale_on_gpu(gpu: &Gpu, values: &Tensor, factor: f64) {
    let n = values.len();
    gpu.launch("optim", "scale", Launch::elements(n), args![values.out(), n, Arg::Real(factor)]);
}

/// The sum of `f` of every value, in double precision, in an order that does not depend on the number of threads.
fn total<T: Real>(values: &[T], f: impl Fn(f64) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = values.par_chunks(cpu::BLOCK).map(|part| part.iter().map(|x| f(x.f64())).sum()).collect();
    sums.iter().sum()
}

/// Where neighbours of one group lie in a slab, and which group.
fn runs(params: &Params) -> Vec<(std::ops::Range<usize>, usize)> {
    let runs = params.specs().chunk_by(|a, b| a.group == b.group);
    runs.map(|run| (run[0].range().start..run[run.len() - 1].range().end, run[0].group)).collect()
}

#[track_caller]
fn check_groups(name: &str, params: &Params, rates: &[f64]) {
    let groups = params.specs().iter().map(|s| s.group + 1).max().unwrap_or(0);
    assert!(groups <= rates.len(), "{name}: {groups} groups but {} learning rates", rates.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ParamsBuilder, Tape, ops::Activation, ops::concat};
    use approx::assert_abs_diff_eq;

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

    #[test]
    fn a_gradient_longer_than_usual_is_cut_to_what_is_allowed() {
        let device = Device::cpu_f64();
        let (mut params, mut grads, [a, b]) = two(&device, [0.0, 0.0], [3.0, -4.0]);
        let mut adam = Adam::new(&params, &[0.1, 0.1]).with_clip(2.0);
        let at = [0, 1].map(|i| params.specs()[i].range().start);
        let mut step = |gradients: [f64; 2]| {
            grads.set(a, &gradients[..1]);
            grads.set(b, &gradients[1..]);
            adam.step(&mut params, &grads);
            [adam.moments()[0], adam.moments()[1]].map(|moment| moment.to_f64())
        };
        let near = |found: &[f64], wanted: [f64; 2]| {
            let found = at.map(|at| found[at]);
            assert!((0..2).all(|i| (found[i] - wanted[i]).abs() < 1e-12), "{found:?} instead of {wanted:?}");
        };
        // Nothing is usual at first; 5 is after it, so 10 is allowed.
        let [m, v] = step([3.0, -4.0]);
        near(&m, [0.3, -0.4]);
        near(&v, [0.009, 0.016]);
        let [m, _] = step([6.0, 0.0]);
        near(&m, [0.9 * 0.3 + 0.6, 0.9 * -0.4]);
        // v of two updates is (9 + 16 + 36)·0.001, less what the first has lost; of 1,000 only so much is left.
        let usual = ((0.999 * 25.0 + 36.0) * 0.001 / (1.0 - 0.999f64.powi(2))).sqrt();
        let [m, _] = step([0.0, 1000.0]);
        near(&m, [0.9 * 0.87, 0.9 * -0.36 + 0.1 * 2.0 * usual]);
    }

    /// Two groups of one number each, and gradients for them.
    fn two(device: &Device, values: [f64; 2], gradients: [f64; 2]) -> (Params, Grads, [crate::ParamId; 2]) {
        let mut builder = ParamsBuilder::new();
        let a = builder.add("a", &[1], |_| values[0]);
        builder.group(1);
        let b = builder.add("b", &[1], |_| values[1]);
        let params = builder.build(device);
        let mut grads = Grads::zeros(&params);
        grads.set(a, &gradients[..1]);
        grads.set(b, &gradients[1..]);
        (params, grads, [a, b])
    }

    #[test]
    fn momentum_and_decay_are_those_of_the_formulas() {
        let device = Device::cpu_f64();
        let (mut params, grads, [a, b]) = two(&device, [1.0, 2.0], [0.5, -1.0]);
        let mut sgd = Sgd::new(&params, &[0.1, 0.2], 0.9).with_decay(0.01);
        let (mut p, mut v) = ([1.0, 2.0], [0.0, 0.0]);
        for _ in 0..3 {
            sgd.step(&mut params, &grads);
            for i in 0..2 {
                v[i] = 0.9 * v[i] + [0.5, -1.0][i] + 0.01 * p[i];
                p[i] -= [0.1, 0.2][i] * v[i];
            }
        }
        for (id, wanted) in [a, b].into_iter().zip(p) {
            assert_abs_diff_eq!(params.get(id).item(), wanted, epsilon = 1e-12);
        }

        let (mut params, grads, [a, _]) = two(&device, [1.0, 2.0], [0.5, -1.0]);
        let adam = Adam::new(&params, &[0.1, 0.2]);
        AdamW::new(adam, 0.5).step(&mut params, &grads);
        // The first step of Adam is the rate, against the sign of the gradient.
        assert_abs_diff_eq!(params.get(a).item(), 1.0 * (1.0 - 0.1 * 0.5) - 0.1, epsilon = 1e-8);
    }

    #[test]
    fn long_gradients_are_clipped_and_short_ones_are_not() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let (_, mut grads, [a, b]) = two(&device, [0.0, 0.0], [3.0, -4.0]);
            assert_eq!(clip_norm(&mut grads, 10.0), 5.0);
            assert_eq!(grads.get(b).item(), -4.0);
            assert_eq!(clip_norm(&mut grads, 1.0), 5.0);
            assert_abs_diff_eq!([grads.get(a).item(), clip_norm(&mut grads, 9.0)][..], [0.6, 1.0][..], epsilon = 1e-6);
        }
    }
}
