//! Elementwise sums, differences and products, products with one number per row, and sums.

use super::{Op, same_shape};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args, grad},
    real::Real,
    tape::Slot,
};

/// y = a·x + b·z.
struct Combine {
    name: &'static str,
    a: f64,
    b: f64,
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        same_shape(self.name, &x[0], &x[1]);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let (a, b) = (T::of(self.a), T::of(self.b));
            let (x, z) = (x[0].slice::<T>(), x[1].slice::<T>());
            cpu::each_block(y.slice_mut::<T>(), #[inline(always)] |at, y| {
                let n = y.len();
                for ((y, &x), &z) in y.iter_mut().zip(&x[at..][..n]).zip(&z[at..][..n]) {
                    *y = a * x + b * z;
                }
            });
        }, gpu => {
            let (n, [a, b]) = (y.len(), [self.a, self.b].map(Arg::Real));
            gpu.launch("elementwise", "combine_fwd", Launch::elements(n), args![&x[0], &x[1], y.out(), n, a, b]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        on_device!(cx, T => {
            for (slot, factor) in dx.iter_mut().zip([self.a, self.b]) {
                let (Some(slot), factor, dy) = (slot, T::of(factor), dy.slice::<T>()) else { continue };
                add_map(slot, #[inline(always)] |i| factor * dy[i]);
            }
        }, gpu => {
            let [x, z] = dx else { unreachable!() };
            let ([dx, add_dx], [dz, add_dz], n) = (grad(x), grad(z), dy.len());
            let [a, b] = [self.a, self.b].map(Arg::Real);
            gpu.launch("elementwise", "combine_bwd", Launch::elements(n), args![dy, dx, add_dx, dz, add_dz, n, a, b]);
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
                *y = x.larger(T::ZERO) + (-x.abs()).exp().ln_1p();
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

/// Sums groups of `group` neighbouring elements.
struct Sum {
    group: usize,
    shape: Vec<usize>,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, &self.shape);
        on_device!(cx, T => {
            for (y, x) in y.slice_mut::<T>().iter_mut().zip(x[0].slice::<T>().chunks(self.group)) {
                *y = x.iter().copied().sum();
            }
        }, gpu => {
            let threads = self.group.next_multiple_of(32).clamp(32, 1024);
            gpu.launch("elementwise", "sum_fwd", Launch::rows(y.len(), threads), args![&x[0], y.out(), self.group]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            for (dx, &dy) in slot.add::<T>().chunks_mut(self.group).zip(dy.slice::<T>()) {
                dx.iter_mut().for_each(|dx| *dx += dy);
            }
        }, gpu => {
            let ([dx, add], n) = (grad(&mut dx[0]), dy.len() * self.group);
            gpu.launch("elementwise", "sum_bwd", Launch::elements(n), args![dy, dx, add, n, self.group]);
        });
    }
}

impl<'t> Var<'t> {
    /// The sum of all elements, shape `[1]`.
    #[track_caller]
    pub fn sum(self) -> Var<'t> {
        let group = self.shape().iter().product();
        self.tape().apply(Sum { group, shape: vec![1] }, &[self])
    }

    /// log(1 + eˣ), elementwise.
    #[track_caller]
    pub fn softplus(self) -> Var<'t> {
        self.tape().apply(Softplus, &[self])
    }

    /// The mean of all elements, shape `[1]`.
    #[track_caller]
    pub fn mean(self) -> Var<'t> {
        let n: usize = self.shape().iter().product();
        self.sum() * (1.0 / n as f64)
    }
}

impl<'t> std::ops::Add for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn add(self, other: Self) -> Var<'t> {
        self.tape().apply(Combine { name: "add", a: 1.0, b: 1.0 }, &[self, other])
    }
}

impl<'t> std::ops::Sub for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn sub(self, other: Self) -> Var<'t> {
        self.tape().apply(Combine { name: "sub", a: 1.0, b: -1.0 }, &[self, other])
    }
}

impl<'t> std::ops::Mul for Var<'t> {
    type Output = Var<'t>;
    #[track_caller]
    fn mul(self, other: Self) -> Var<'t> {
        self.tape().apply(Mul, &[self, other])
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

#[cfg(test)]
mod tests {
    use crate::gradcheck::gradcheck;

    #[test]
    fn elementwise_gradients() {
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] + x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] - x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| x[0] * x[1]) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0] * -2.5 + 3.0) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].softplus()) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].sum()) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].mean()) < 1e-8);
    }

    #[test]
    fn same_input_twice_gets_both_gradients() {
        assert!(gradcheck(&[&[5]], |_, x| x[0] * x[0]) < 1e-8);
        assert!(gradcheck(&[&[5]], |_, x| x[0] * x[0] * x[0] + x[0]) < 1e-8);
    }
}
