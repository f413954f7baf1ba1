//! One check for everything differentiable: gradients against central differences, in double precision.

use crate::{Device, Grads, Tape, Tensor, Var, rng::Rng, rng::Stream};

/// Compares d f / d xs with central differences; `xs` are standard normal numbers of the given shapes.
///
/// `f` must be smooth near them. Returns the worst relative error; see [`gradcheck_at`].
pub fn gradcheck(shapes: &[&[usize]], f: impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>) -> f64 {
    let device = Device::cpu_f64();
    let draw = |(k, shape): (usize, &&[usize])| Rng::new(1, 0).normal_tensor(&device, Stream(k as u32), shape);
    gradcheck_at(&shapes.iter().enumerate().map(draw).collect::<Vec<_>>(), f)
}

/// Compares d f / d xs with fourth-order central differences along four random directions of each input.
///
/// The result of `f` is multiplied by random numbers and summed, so no element can hide. `xs` are double precision tensors.
/// Returns the worst error relative to the directional derivative (or to the size of its terms, where they cancel).
pub fn gradcheck_at(xs: &[Tensor], f: impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>) -> f64 {
    let device = Device::cpu_f64();
    let mut worst = 0.0f64;
    let (_, grads) = projected(&device, xs, true, &f);
    for (k, x) in xs.iter().enumerate() {
        let values = x.to_f64();
        let grad = grads[k].to_f64();
        for direction in 0..4 {
            let v = Rng::new(2, direction).normal_tensor(&device, Stream(k as u32), x.shape()).to_f64();
            let shifted = |h: f64| {
                let moved: Vec<f64> = values.iter().zip(&v).map(|(a, d)| a + h * d).collect();
                let mut all = xs.to_vec();
                all[k] = Tensor::from_f64(&device, x.shape(), &moved);
                projected(&device, &all, false, &f).0
            };
            let h = 1e-4;
            let numeric = (8.0 * (shifted(h) - shifted(-h)) - (shifted(2.0 * h) - shifted(-2.0 * h))) / (12.0 * h);
            let exact: f64 = grad.iter().zip(&v).map(|(g, d)| g * d).sum();
            let size = grad.iter().zip(&v).map(|(g, d)| (g * d).powi(2)).sum::<f64>().sqrt();
            worst = worst.max((numeric - exact).abs() / (1e-9 + numeric.abs().max(size)));
        }
    }
    worst
}

/// Compares a device with double precision on the CPU, for `xs` as in [`gradcheck`]: the results of `f` and all gradients.
///
/// Returns the largest difference relative to the largest number of its kind; infinite where something is not finite. Around 1e-6 is what
/// single precision does; a kernel that is wrong is far from it.
///
/// # Errors
/// What went wrong on the device, such as a kernel that does not compile.
pub fn device_error(
    device: &Device,
    shapes: &[&[usize]],
    f: impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>,
) -> crate::Result<f64> {
    let run = |device: &Device| {
        let draw = |(k, shape): (usize, &&[usize])| Rng::new(1, 0).normal_tensor(device, Stream(k as u32), shape);
        let xs: Vec<Tensor> = shapes.iter().enumerate().map(draw).collect();
        let (_, mut all) = projected(device, &xs, true, &f);
        let tape = Tape::without_params(device);
        all.push(values(&tape, &xs, &f));
        let all: Vec<Vec<f64>> = all.iter().map(Tensor::to_f64).collect();
        device.check().map(|()| all)
    };
    let (found, wanted) = (run(device)?, run(&Device::cpu_f64())?);
    let distance = |(found, wanted): (&Vec<f64>, &Vec<f64>)| {
        let size = wanted.iter().fold(1e-30f64, |most, x| most.max(x.abs()));
        found.iter().zip(wanted).fold(0.0f64, |worst, (a, b)| match (a - b).abs() / size {
            error if error.is_finite() => worst.max(error),
            _ => f64::INFINITY,
        })
    };
    Ok(found.iter().zip(&wanted).map(distance).fold(0.0, f64::max))
}

fn values<'t>(tape: &'t Tape<'t>, xs: &[Tensor], f: &impl Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>) -> Tensor {
    let vars: Vec<Var<'t>> = xs.iter().map(|x| tape.input(x.clone())).collect();
    f(tape, &vars).value()
}

/// Σ w·f(xs) with fixed random w, and its gradients.
fn projected(
    device: &Device,
    xs: &[Tensor],
    grad: bool,
    f: &impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>,
) -> (f64, Vec<Tensor>) {
    let tape = Tape::without_params(device);
    project(&tape, device, xs, grad, f)
}

fn project<'t>(
    tape: &'t Tape<'t>,
    device: &Device,
    xs: &[Tensor],
    grad: bool,
    f: &impl Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>,
) -> (f64, Vec<Tensor>) {
    let vars: Vec<Var<'t>> = xs.iter().map(|x| tape.input(x.clone())).collect();
    let y = f(tape, &vars);
    let w = tape.constant(Rng::new(7, 0).normal_tensor(device, Stream(0), &y.shape()));
    let sum = (y * w).sum();
    if !grad {
        return (sum.value().item(), vec![]);
    }
    let found = tape.backward(sum, &mut Grads::none(device));
    (sum.value().item(), vars.iter().map(|&v| found.of(v)).collect())
}
