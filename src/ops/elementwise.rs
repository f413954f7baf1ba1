//! Elementwise sums, differences and products. Those of two values go together by NumPy's rules.

use super::{Op, same_shape, view::broadcast};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    kernels::common::TABLE,
    real::Real,
    slot::{Slot, grad},
};

/// y = Σ_k factor_k·x_k.
struct Combine {
    name: &'static str,
    factors: Vec<f64>,
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        x.iter().for_each(|other| same_shape(self.name, &x[0], other));
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let factors: Vec<T> = self.factors.iter().map(|&a| T::of(a)).collect();
            cpu::each_block(y.slice_mut::<T>(), #[inline(always)] |at, y| {
                let n = y.len();
                for (k, (x, &a)) in x.iter().zip(&factors).enumerate() {
                    let terms = y.iter_mut().zip(&x.slice::<T>()[at..][..n]);
                    if k == 0 {
                        terms.for_each(|(y, &x)| *y = a * x);
                    } else {
                        terms.for_each(|(y, &x)| *y += a * x);
                    }
                }
            });
        }, gpu => {
            let n = y.len();
            for (i, (x, factors)) in x.chunks(TABLE).zip(self.factors.chunks(TABLE)).enumerate() {
                let mut args = vec![Arg::table(x.iter().map(Tensor::span)), y.out(), Arg::Int((i > 0).into())];
                args.extend(factors.iter().map(|&a| Arg::Real(a)));
                args.resize(TABLE + 3, Arg::Real(0.0));
                args.extend([x.len(), n].map(Arg::from));
                gpu.launch("elementwise", "combine_fwd", Launch::elements(n), &args);
            }
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        on_device!(cx, T => {
            for (slot, &factor) in dx.iter_mut().zip(&self.factors) {
                let (Some(slot), factor, dy) = (slot, T::of(factor), dy.slice::<T>()) else { continue };
                add_map(slot, #[inline(always)] |i| factor * dy[i]);
            }
        }, gpu => {
            let n = dy.len();
            for (dx, factors) in dx.chunks_mut(TABLE).zip(self.factors.chunks(TABLE)) {
                let mut args = vec![Arg::from(dy)];
                args.extend(dx.iter_mut().flat_map(grad));
                while args.len() < 1 + 2 * TABLE {
                    args.extend(grad(&mut None));
                }
                args.extend(factors.iter().map(|&a| Arg::Real(a)));
                args.resize(1 + 3 * TABLE, Arg::Real(0.0));
                args.push(n.into());
                gpu.launch("elementwise", "combine_bwd", Launch::elements(n), &args);
            }
        });
    }
}

/// slot[i] += g(i), in parallel.
#[inline(always)]
pub(super) fn add_map<T: Real>(slot: &mut Slot, g: impl Fn(usize) -> T + Sync) {
    let (values, fresh) = slot.write::<T>();
    cpu::each_block(
        values,
        #[inline(always)]
        |at, block| {
            for (i, v) in block.iter_mut().enumerate() {
                *v = if fresh { g(at + i) } else { *v + g(at + i) };
            }
        },
    );
}

/// y[i] = x[i]·z[i].
struct Mul;

impl Op for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        same_shape("mul", &x[0], &x[1]);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let (x, z) = (x[0].slice::<T>(), x[1].slice::<T>());
            cpu::each_block(y.slice_mut::<T>(), #[inline(always)] |at, y| {
                let n = y.len();
                for ((y, &x), &z) in y.iter_mut().zip(&x[at..][..n]).zip(&z[at..][..n]) {
                    *y = x * z;
                }
            });
        }, gpu => {
            let n = y.len();
            gpu.launch("elementwise", "mul_fwd", Launch::elements(n), args![&x[0], &x[1], y.out(), n]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        on_device!(cx, T => {
            for (slot, other) in dx.iter_mut().zip([&x[1], &x[0]]) {
                let (Some(slot), other, dy) = (slot, other.slice::<T>(), dy.slice::<T>()) else { continue };
                add_map(slot, #[inline(always)] |i| other[i] * dy[i]);
            }
        }, gpu => {
            let [left, right] = dx else { unreachable!() };
            let ([dx, add_dx], [dz, add_dz], n) = (grad(left), grad(right), dy.len());
            let args = args![&x[0], &x[1], dy, dx, add_dx, dz, add_dz, n];
            gpu.launch("elementwise", "mul_bwd", Launch::elements(n), args);
        });
    }
}

/// y = x·factor + offset.
struct Scale {
    factor: f64,
    offset: f64,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let (factor, offset, x) = (T::of(self.factor), T::of(self.offset), x[0].slice::<T>());
            for (y, &x) in y.slice_mut::<T>().iter_mut().zip(x) {
                *y = factor * x + offset;
            }
        }, gpu => {
            let (n, [factor, offset]) = (y.len(), [self.factor, self.offset].map(Arg::Real));
            gpu.launch("elementwise", "scale_fwd", Launch::elements(n), args![&x[0], y.out(), n, factor, offset]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        add_multiple(cx, dy, self.factor, &mut dx[0]);
    }
}

/// slot += factor·dy.
pub(super) fn add_multiple(cx: &Device, dy: &Tensor, factor: f64, slot: &mut Option<Slot>) {
    if slot.is_none() {
        return;
    }
    on_device!(cx, T => {
        let (Some(slot), factor, dy) = (slot, T::of(factor), dy.slice::<T>()) else { return };
        add_map(slot, #[inline(always)] |i| factor * dy[i]);
    }, gpu => {
        let ([dx, add], n) = (grad(slot), dy.len());
        gpu.launch("elementwise", "scale_bwd", Launch::elements(n), args![dy, dx, add, n, Arg::Real(factor)]);
    });
}

/// y = log(1 + eˣ).
struct Softplus;

impl Op for Softplus {
    fn name(&self) -> &'static str {
        "softplus"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            for (y, &x) in y.slice_mut::<T>().iter_mut().zip(x[0].slice::<T>()) {
                *y = x.softplus();
            }
        }, gpu => {
            let n = y.len();
            gpu.launch("elementwise", "softplus_fwd", Launch::elements(n), args![&x[0], y.out(), n]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (x, dy) = (x[0].slice::<T>(), dy.slice::<T>());
            add_map(slot, #[inline(always)] |i| dy[i] * x[i].sigmoid());
        }, gpu => {
            let ([dx, add], n) = (grad(&mut dx[0]), dy.len());
            gpu.launch("elementwise", "softplus_bwd", Launch::elements(n), args![&x[0], dy, dx, add, n]);
        });
    }
}

/// Σ factor·x over the terms (factor, x), all of one shape.
#[track_caller]
pub fn combine<'t>(terms: &[(f64, Var<'t>)]) -> Var<'t> {
    combine_as("combine", terms)
}

#[track_caller]
fn combine_as<'t>(name: &'static str, terms: &[(f64, Var<'t>)]) -> Var<'t> {
    let (factors, x): (Vec<f64>, Vec<Var>) = terms.iter().copied().unzip();
    x[0].tape().apply(Combine { name, factors }, &x)
}

impl<'t> Var<'t> {
    /// log(1 + eˣ), elementwise.
    #[track_caller]
    pub fn softplus(self) -> Var<'t> {
        self.tape().apply(Softplus, &[self])
    }
}

impl<'t> std::ops::Add for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn add(self, other: Self) -> Var<'t> {
        let [a, b] = broadcast("add", self, other);
        combine_as("add", &[(1.0, a), (1.0, b)])
    }
}

impl<'t> std::ops::Sub for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn sub(self, other: Self) -> Var<'t> {
        let [a, b] = broadcast("sub", self, other);
        combine_as("sub", &[(1.0, a), (-1.0, b)])
    }
}

impl<'t> std::ops::Mul for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn mul(self, other: Self) -> Var<'t> {
        self.tape().apply(Mul, &broadcast("mul", self, other))
    }
}

impl<'t> std::ops::Mul<f64> for Var<'t> {
    type Output = Var<'t>;
    fn mul(self, factor: f64) -> Var<'t> {
        self.tape().apply(Scale { factor, offset: 0.0 }, &[self])
    }
}

impl<'t> std::ops::Add<f64> for Var<'t> {
    type Output = Var<'t>;
    fn add(self, offset: f64) -> Var<'t> {
        self.tape().apply(Scale { factor: 1.0, offset }, &[self])
    }
}

impl<'t> std::ops::Sub<f64> for Var<'t> {
    type Output = Var<'t>;
    fn sub(self, offset: f64) -> Var<'t> {
        self + -offset
    }
}

impl<'t> std::ops::Div<f64> for Var<'t> {
    type Output = Var<'t>;
    fn div(self, divisor: f64) -> Var<'t> {
        self * (1.0 / divisor)
    }
}

impl<'t> std::ops::Neg for Var<'t> {
    type Output = Var<'t>;
    fn neg(self) -> Var<'t> {
        self * -1.0
    }
}

#[cfg(test)]
mod tests {
    use super::combine;
    use crate::gradcheck::gradcheck;

    #[test]
    fn elementwise_gradients() {
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] + x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] - x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] * x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0] * -2.5 + 3.0) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| -x[0] / 2.5 - 3.0) < 1e-8);
        assert!(gradcheck(&[&[3, 1], &[2, 1, 4]], |_, x| x[0] + x[1]) < 1e-8);
        assert!(gradcheck(&[&[4], &[3, 1]], |_, x| x[0] - x[1]) < 1e-8);
        assert!(gradcheck(&[&[1], &[2, 3]], |_, x| x[0] * x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].softplus()) < 1e-8);
        let many = [&[5][..]; 11];
        assert!(gradcheck(&many, |_, x| combine(&x.iter().map(|&x| (0.5, x)).collect::<Vec<_>>())) < 1e-8);
    }

    #[test]
    fn same_input_twice_gets_both_gradients() {
        assert!(gradcheck(&[&[5]], |_, x| x[0] * x[0]) < 1e-8);
        assert!(gradcheck(&[&[5]], |_, x| x[0] * x[0] * x[0] + x[0]) < 1e-8);
    }
}
