//! The learning signal of the on/off decisions and its centring (NVIL; Mnih and Gregor 2014, "Neural variational inference and
//! learning in belief networks"; section 8 of the model). No gradient flows through any of this.

use super::same_shape;
use crate::{
    Tensor,
    device::on_device,
    gpu::{Arg, Launch, args},
    kernels::nvil::DECAY,
    real::Real,
};

/// What the loss needs of the learning signal.
#[derive(Clone, Debug)]
pub struct Advantage {
    /// R_t = m_t·(Σ_{i≥t} k_i − ℓ/β), `[T, B]`: the target of the baseline.
    pub signal: Tensor,
    /// R_t − b_t, `[T, B]`.
    pub raw: Tensor,
    /// Centred and scaled, `[T, B]`: the factor of log q(o_t).
    pub normalised: Tensor,
    /// The updated running mean c and variance v, `[2]`.
    pub running: Tensor,
}

/// The learning signal, its difference to the baseline, and that normalised.
///
/// kl, mask, baseline `[T, B]`, log_likelihood `[B]`, running `[2]` = (c, v), read from iteration 1 on.
#[track_caller]
pub fn advantage(
    kl: &Tensor,
    log_likelihood: &Tensor,
    mask: &Tensor,
    baseline: &Tensor,
    beta: f64,
    running: &Tensor,
    iteration: u64,
) -> Advantage {
    same_shape("advantage", kl, mask);
    same_shape("advantage", kl, baseline);
    let b = log_likelihood.len();
    assert!(kl.shape().len() == 2 && kl.shape()[1] == b, "advantage: kl {:?} for {b} images", kl.shape());
    check_running(running);
    let device = kl.device();
    let (mut signal, mut raw) = (Tensor::empty(device, kl.shape()), Tensor::empty(device, kl.shape()));
    on_device!(device, T => {
        let (kl, mask, baseline) = (kl.slice::<T>(), mask.slice::<T>(), baseline.slice::<T>());
        let (signal, raw) = (signal.slice_mut::<T>(), raw.slice_mut::<T>());
        // Σ_{i≥t} k_i − ℓ/β, from the last step backwards.
        let mut rest: Vec<T> = log_likelihood.slice::<T>().iter().map(|&l| -l / T::of(beta)).collect();
        for at in (0..kl.len()).step_by(b).rev() {
            for (j, rest) in rest.iter_mut().enumerate() {
                let i = at + j;
                *rest += kl[i];
                signal[i] = mask[i] * *rest;
                raw[i] = signal[i] - baseline[i];
            }
        }
    }, gpu => {
        let (normalised, updated) = (Tensor::empty(device, kl.shape()), Tensor::empty(device, &[2]));
        let (steps, beta, first) = (kl.shape()[0], Arg::Real(beta), usize::from(iteration == 0));
        let [s, r, y, v] = [&signal, &raw, &normalised, &updated].map(Tensor::out);
        if let Some(peers) = gpu.peers() {
            // Mean and variance are those of the batches of all GPUs: each writes a row of what is summed.
            let moments = Tensor::zeros(device, &[peers.count(), 3]);
            let args = args![kl, log_likelihood, mask, baseline, s, r, moments.out(), steps, b, beta, peers.rank()];
            gpu.launch("nvil", "advantage_moments", launch(kl.len()), args);
            gpu.all_reduce(&[moments.span()]);
            let args = args![&raw, &moments, running, y, v, raw.len(), peers.count(), first];
            gpu.launch("nvil", "normalise_by_moments", launch(kl.len()), args);
            return Advantage { signal, raw, normalised, running: updated };
        }
        let args = args![kl, log_likelihood, mask, baseline, running, s, r, y, v, steps, b, beta, first];
        gpu.launch("nvil", "advantage", launch(kl.len()), args);
        return Advantage { signal, raw, normalised, running: updated };
    });
    let (normalised, running) = normalise(&raw, mask, running, iteration);
    Advantage { signal, raw, normalised, running }
}

/// `(raw − c)/max(1, √v)` with running mean c and variance v of the unmasked values, updated before use.
///
/// raw, mask `[T, B]`, running `[2]` = (c, v), which iteration 0 does not read but sets to the values of this batch → (normalised
/// `[T, B]`, running `[2]`).
#[track_caller]
pub fn normalise(raw: &Tensor, mask: &Tensor, running: &Tensor, iteration: u64) -> (Tensor, Tensor) {
    same_shape("normalise", raw, mask);
    check_running(running);
    let device = raw.device();
    let (mut y, mut updated) = (Tensor::empty(device, raw.shape()), Tensor::empty(device, &[2]));
    on_device!(device, T => {
        let (raw, mask) = (raw.slice::<T>(), mask.slice::<T>());
        let masked_mean = |f: &dyn Fn(f64) -> f64| {
            let sum = raw.iter().zip(mask).map(|(a, m)| m.f64() * f(a.f64())).sum::<f64>();
            sum / mask.iter().map(|m| m.f64()).sum::<f64>()
        };
        let mean = masked_mean(&|a| a);
        let var = masked_mean(&|a| (a - mean).powi(2));
        let old = if iteration == 0 { [mean, var] } else { [0, 1].map(|i| running.slice::<T>()[i].f64()) };
        let [c, v] = [(old[0], mean), (old[1], var)].map(|(old, new)| DECAY * old + (1.0 - DECAY) * new);
        let scale = T::of(1.0 / v.sqrt().max(1.0));
        for (y, &a) in y.slice_mut::<T>().iter_mut().zip(raw) {
            *y = (a - T::of(c)) * scale;
        }
        updated.slice_mut::<T>().copy_from_slice(&[T::of(c), T::of(v)]);
    }, gpu => {
        let args = args![raw, mask, running, y.out(), updated.out(), raw.len(), usize::from(iteration == 0)];
        gpu.launch("nvil", "normalise", launch(raw.len()), args);
    });
    (y, updated)
}

#[track_caller]
fn check_running(running: &Tensor) {
    assert_eq!(running.len(), 2, "the running statistics are a mean and a variance");
}

/// One block, for the sums over all `n` elements.
fn launch(n: usize) -> Launch {
    Launch::rows(1, n.next_multiple_of(32).clamp(32, 1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_signal_sums_the_divergence_from_each_step_on() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let steps = |x: [f64; 6]| Tensor::from_f64(&device, &[3, 2], &x);
            let fit = Tensor::from_f64(&device, &[2], &[8.0, -4.0]);
            let (kl, mask) = (steps([1.0, 2.0, 3.0, 0.0, 5.0, 0.0]), steps([1.0, 1.0, 1.0, 0.0, 1.0, 0.0]));
            let zero = Tensor::zeros(&device, &[2]);
            let found = advantage(&kl, &fit, &mask, &steps([1.0, 1.0, 2.0, 0.0, 0.0, 0.0]), 4.0, &zero, 0);
            assert_eq!(found.signal.to_f64(), [7.0, 3.0, 6.0, 0.0, 3.0, 0.0]);
            assert_eq!(found.raw.to_f64(), [6.0, 2.0, 4.0, 0.0, 3.0, 0.0]);
            // Mean and variance of 6, 2, 4, 3.
            assert_abs_diff_eq!(found.running.to_f64()[..], [3.75, 2.1875][..], epsilon = 1e-6);
            assert_abs_diff_eq!(found.normalised.to_f64()[0], 2.25 / 2.1875f64.sqrt(), epsilon = 1e-6);
        }
    }

    #[test]
    fn later_iterations_move_a_fifth_of_the_way_and_small_variances_do_not_amplify() {
        let device = Device::cpu_f64();
        let raw = Tensor::from_f64(&device, &[1, 2], &[1.0, 2.0]);
        let old = Tensor::from_f64(&device, &[2], &[0.5, 0.25]);
        let (y, running) = normalise(&raw, &Tensor::full(&device, &[1, 2], 1.0), &old, 7);
        let close = |found: Vec<f64>, wanted: [f64; 2]| found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(running.to_f64(), [0.7, 0.25]) && close(y.to_f64(), [0.3, 1.3]));
    }
}
