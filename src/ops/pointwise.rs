//! Functions of one number or of two, elementwise: y = f(x), y = f(x, a). Their formulas are one line each in
//! `src/kernels/pointwise.rs`, for the CPU and for the GPU.

use super::{Op, same_shape, view::broadcast};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    kernels::pointwise::Function,
    real::Real,
    slot::{Slot, grad},
};

/// A function, and its second argument where that is a number.
struct Pointwise(Function, f64);

impl Op for Pointwise {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        x.iter().for_each(|a| same_shape(self.name(), &x[0], a));
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let number = [T::of(self.1)];
            let (x, a) = (x[0].slice::<T>(), x.get(1).map_or(&number[..], Tensor::slice));
            cpu::each_block(y.slice_mut::<T>(), #[inline(always)] |at, y| {
                let part = at..at + y.len();
                self.0.values(&x[part.clone()], part_of(a, part), y);
            });
        }, gpu => {
            let n = y.len();
            let args = args![&x[0], Arg::input(x.get(1)), y.out(), n, self.0 as usize, Arg::Real(self.1)];
            gpu.launch("pointwise", "pointwise_fwd", Launch::elements(n), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        on_device!(cx, T => {
            let number = [T::of(self.1)];
            let (x, a) = (x[0].slice::<T>(), x.get(1).map_or(&number[..], Tensor::slice));
            let (y, dy) = (y[0].slice::<T>(), dy.slice::<T>());
            for (k, slot) in dx.iter_mut().enumerate() {
                let Some(slot) = slot else { continue };
                let (values, fresh) = slot.write::<T>();
                cpu::each_block(values, #[inline(always)] |at, out| {
                    let part = at..at + out.len();
                    cpu::with_scratch(out.len(), #[inline(always)] |slopes: &mut [T]| {
                        let (x, a, y) = (&x[part.clone()], part_of(a, part.clone()), &y[part.clone()]);
                        match k {
                            0 => self.0.slopes(x, a, y, slopes),
                            _ => self.0.slopes_of_second(x, a, y, slopes),
                        }
                        for ((out, &slope), &dy) in out.iter_mut().zip(&*slopes).zip(&dy[part]) {
                            *out = if fresh { dy * slope } else { *out + dy * slope };
                        }
                    });
                });
            }
        }, gpu => {
            let ([dx, add_dx], [da, add_da]) = match dx {
                [dx] => (grad(dx), grad(&mut None)),
                [dx, da] => (grad(dx), grad(da)),
                _ => unreachable!(),
            };
            let n = dy.len();
            let args = args![
                &x[0], Arg::input(x.get(1)), &y[0], dy, dx, add_dx, da, add_da, n, self.0 as usize, Arg::Real(self.1)
            ];
            gpu.launch("pointwise", "pointwise_bwd", Launch::elements(n), args);
        });
    }
}

/// A part of the second arguments, or the only one.
#[inline(always)]
fn part_of<T>(a: &[T], part: std::ops::Range<usize>) -> &[T] {
    if a.len() == 1 { a } else { &a[part] }
}

/// Methods of a function of one number.
macro_rules! of_one {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => {
        impl<'t> Var<'t> {
            $($(#[$doc])* #[track_caller] pub fn $name(self) -> Var<'t> {
                self.tape().apply(Pointwise(Function::$function, 0.0), &[self])
            })*
        }
    };
}

of_one! {
    /// max(x, 0), elementwise; the gradient at 0 is 0.
    relu = Relu;
    /// 1/(1 + e⁻ˣ), elementwise.
    sigmoid = Sigmoid;
    /// The hyperbolic tangent, elementwise.
    tanh = Tanh;
    /// eˣ, elementwise.
    exp = Exp;
    /// The natural logarithm, elementwise.
    log = Log;
    /// √x, elementwise.
    sqrt = Sqrt;
    /// |x|, elementwise; the gradient at 0 is 0.
    abs = Abs;
}

impl<'t> Var<'t> {
    /// xᵃ, elementwise. The gradient is NaN where the slope does not exist.
    #[track_caller]
    pub fn pow(self, a: f64) -> Var<'t> {
        self.tape().apply(Pointwise(Function::PowNumber, a), &[self])
    }

    /// xᵃ, elementwise, with an exponent for each; shapes go together by NumPy's rules.
    #[track_caller]
    pub fn pow_of(self, a: Var<'t>) -> Var<'t> {
        self.with(a, Function::Pow)
    }

    /// The larger of both, elementwise; shapes go together by NumPy's rules. Where they are equal they share the gradient.
    #[track_caller]
    pub fn maximum(self, other: Var<'t>) -> Var<'t> {
        self.with(other, Function::Maximum)
    }

    /// The smaller of both; else as [`Var::maximum`].
    #[track_caller]
    pub fn minimum(self, other: Var<'t>) -> Var<'t> {
        self.with(other, Function::Minimum)
    }

    #[track_caller]
    fn with(self, other: Var<'t>, function: Function) -> Var<'t> {
        self.tape().apply(Pointwise(function, 0.0), &broadcast(function.name(), self, other))
    }
}

impl<'t> std::ops::Div for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn div(self, other: Self) -> Var<'t> {
        self.with(other, Function::Div)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grads, Tape, gradcheck::gradcheck_at};

    #[test]
    fn pointwise_gradients() {
        let device = Device::cpu_f64();
        // Positive numbers, none of which is near another of the same place.
        let x = [0.3, 1.7, 0.9, 2.2, 0.4, 3.1];
        let a = [1.3, 0.6, 2.4, 0.7, -1.1, 0.2];
        let [x, a] = [x, a].map(|values| Tensor::from_f64(&device, &[2, 3], &values));
        for &function in Function::ALL {
            let two = matches!(function, Function::Pow | Function::Div | Function::Maximum | Function::Minimum);
            let inputs = if two { vec![x.clone(), a.clone()] } else { vec![x.clone()] };
            let error = gradcheck_at(&inputs, |tape, x| tape.apply(Pointwise(function, 1.7), x));
            assert!(error < 1e-8, "{}: {error}", function.name());
        }
    }

    #[test]
    fn kinks_and_ties_have_the_slopes_that_are_said() {
        let device = Device::cpu_f64();
        let slopes = |function, x: &[f64], a: Option<&[f64]>| {
            let tape = Tape::without_params(&device);
            let of = |values: &[f64]| tape.input(Tensor::from_f64(&device, &[values.len()], values));
            let inputs: Vec<Var> = std::iter::once(of(x)).chain(a.map(of)).collect();
            let sum = tape.apply(Pointwise(function, 0.0), &inputs).sum();
            let found = tape.backward(sum, &mut Grads::none(&device));
            inputs.iter().map(|&x| found.of(x).to_f64()).collect::<Vec<_>>()
        };
        assert_eq!(slopes(Function::Relu, &[-1.0, 0.0, 2.0], None), [[0.0, 0.0, 1.0]]);
        assert_eq!(slopes(Function::Abs, &[-1.0, 0.0, 2.0], None), [[-1.0, 0.0, 1.0]]);
        let (x, a) = ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]);
        assert_eq!(slopes(Function::Maximum, &x, Some(&a)), [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]]);
        assert_eq!(slopes(Function::Minimum, &x, Some(&a)), [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]);
        assert_eq!(slopes(Function::PowNumber, &[0.0, 2.0], None), [[0.0, 0.0]]);
    }
}
