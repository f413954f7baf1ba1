//! y = act(x·Wᵀ + b), with act the identity, tanh or max(·, 0).

use super::{
    Cost, Op,
    gemm::{self, Plan, naive_product},
    size,
};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    kernels::gemm::{RELU, TANH},
    matmul::{Matrix, product},
    real::Real,
    slot::{Slot, grad},
};

/// What follows a linear map, in the same op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// Hyperbolic tangent.
    Tanh,
    /// max(x, 0); the gradient at 0 is 0.
    Relu,
}

impl Activation {
    pub(super) fn arg(self) -> Arg {
        Arg::from(match self {
            Activation::None => 0,
            Activation::Tanh => TANH,
            Activation::Relu => RELU,
        })
    }
}

struct Linear(Activation);

impl<'t> Var<'t> {
    /// `self·Wᵀ + b`: x `[N, I]`, w `[O, I]`, b `[O]` → `[N, O]`, followed by `activation`.
    #[track_caller]
    pub fn linear(self, w: Var<'t>, b: Var<'t>, activation: Activation) -> Var<'t> {
        self.tape().apply(Linear(activation), &[self, w, b])
    }
}

#[track_caller]
fn dims(x: &[Tensor]) -> (usize, usize, usize) {
    match (x[0].shape(), x[1].shape(), x[2].shape()) {
        (&[n, i], &[o, i2], &[o2]) if i == i2 && o == o2 => (n, i, o),
        (x, w, b) => panic!("linear: x {x:?}, w {w:?}, b {b:?}; wanted [N, I], [O, I], [O]"),
    }
}

/// Adds `bias` to every row of y `[N, O]`, then applies the activation.
pub(super) fn finish<T: Real>(y: &mut [T], bias: &[T], activation: Activation) {
    let o = bias.len();
    cpu::each_row(
        y,
        o,
        16,
        #[inline(always)]
        |_, row| match activation {
            Activation::None => row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b),
            Activation::Tanh => row.iter_mut().zip(bias).for_each(|(y, &b)| *y = (*y + b).tanh()),
            Activation::Relu => row.iter_mut().zip(bias).for_each(|(y, &b)| *y = (*y + b).larger(T::ZERO)),
        },
    );
}

/// The gradient before the activation, given y and dy after it; and its sum over rows is added to the bias's slot.
pub(super) fn undo<T: Real>(y: &[T], dy: &[T], activation: Activation, bias: &mut Option<Slot>, o: usize) -> Vec<T> {
    let mut dz = dy.to_vec();
    cpu::each_block(
        if activation == Activation::None { &mut [] } else { &mut dz },
        #[inline(always)]
        |at, dz| {
            let terms = dz.iter_mut().zip(&y[at..]);
            match activation {
                Activation::None => (),
                Activation::Tanh => terms.for_each(|(dz, &y)| *dz *= T::ONE - y * y),
                Activation::Relu => terms.for_each(|(dz, &y)| *dz = if y > T::ZERO { *dz } else { T::ZERO }),
            }
        },
    );
    if let Some(slot) = bias {
        let db = slot.add::<T>();
        for row in dz.chunks(o) {
            db.iter_mut().zip(row).for_each(|(db, &g)| *db += g);
        }
    }
    dz
}

/// On the GPU: y = act(Σ `sums` + bias) with sums `[parts, rows, outputs]`. `live` says which of the images of each
/// `images` rows take part; the others get zeros.
pub(super) fn finish_gpu(
    gpu: &Gpu,
    sums: &Tensor,
    bias: &Tensor,
    live: Option<&Tensor>,
    y: Arg,
    activation: Activation,
    images: usize,
) {
    let &[parts, rows, o] = sums.shape() else {
        panic!("linear: sums {:?}; wanted [parts, rows, outputs]", sums.shape())
    };
    gpu.launch(
        "linear",
        "linear_finish",
        Launch::grid([(rows * o).div_ceil(32), 1, 1], 256),
        args![sums, bias, Arg::input(live), y, parts, rows, images, o, activation.arg()],
    );
}

/// On the GPU: the gradient before the activation; and its sum over rows goes to the bias's slot (as its two arguments).
pub(super) fn undo_gpu(
    gpu: &Gpu,
    y: &Tensor,
    dy: &Tensor,
    activation: Activation,
    live: Option<&Tensor>,
    images: usize,
    [db, add_db]: [Arg; 2],
) -> Tensor {
    let dz = Tensor::empty(y.device(), y.shape());
    let (rows, o) = (y.shape()[0], y.shape()[1]);
    gpu.launch(
        "linear",
        "linear_undo",
        Launch::grid([o.div_ceil(32), 1, 1], 256),
        args![y, dy, Arg::input(live), dz.out(), db, add_db, rows, images, o, activation.arg()],
    );
    dz
}

impl Linear {
    fn forward_gpu(&self, gpu: &Gpu, cx: &Device, x: &[Tensor], y: &Tensor) {
        if gpu.naive() {
            return self.forward_naive(gpu, cx, x, y);
        }
        let (n, i, o) = dims(x);
        let plan = Plan::one(gemm::packed(&[i], &[&x[0], &x[1]]), n, o, i).or_thin(n, o);
        let [down, across] = plan.tiles(n, o);
        let sums = if plan.parts == 1 { y.clone() } else { Tensor::empty(cx, &[plan.parts, n, o]) };
        gpu.launch(
            "linear",
            plan.kernel(["linear_fwd_thin", "linear_fwd_small", "linear_fwd_large"]),
            plan.launch(gpu, [down, across, plan.parts]),
            args![&x[0], &x[1], &x[2], sums.out(), n, i, o, plan.chunk, self.0.arg(), gemm::math(gpu)],
        );
        if plan.parts > 1 {
            finish_gpu(gpu, &sums, &x[2], None, y.out(), self.0, n);
        }
    }

    /// For `DOOD_CUDA_NAIVE=1`.
    fn forward_naive(&self, gpu: &Gpu, cx: &Device, x: &[Tensor], y: &Tensor) {
        let (n, _, o) = dims(x);
        let sums = Tensor::empty(cx, &[1, n, o]);
        naive_product(gpu, gemm::Matrix::of(&x[0]), gemm::Matrix::of(&x[1]).t(), [sums.out(), Arg::Int(0)]);
        finish_gpu(gpu, &sums, &x[2], None, y.out(), self.0, n);
    }

    fn backward_naive(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor, dy: &Tensor, slots: &mut [Option<Slot>]) {
        let dz = undo_gpu(gpu, y, dy, self.0, None, y.shape()[0], grad(&mut slots[2]));
        let [dz, x, w] = [&dz, &x[0], &x[1]].map(gemm::Matrix::of);
        naive_product(gpu, dz, w, grad(&mut slots[0]));
        naive_product(gpu, dz.t(), x, grad(&mut slots[1]));
    }

    fn backward_gpu(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor, dy: &Tensor, slots: &mut [Option<Slot>]) {
        if gpu.naive() {
            return self.backward_naive(gpu, x, y, dy, slots);
        }
        let (n, i, o) = dims(x);
        let results = [[n, i], [o, i]];
        let wanted: Vec<usize> = (0..2).filter(|&s| slots[s].is_some()).collect();
        let sizes: Vec<[usize; 2]> = wanted.iter().map(|&s| results[s]).collect();
        let plan = Plan::several(gemm::packed(&[i, o], &[&x[0], &x[1]]), &sizes);
        // What others wait for is dx, and it has fewer tiles.
        let plans = [plan.or_thin(n, i), plan];
        let tiles = |&s: &usize| plans[s].tiles(results[s][0], results[s][1]).iter().product::<usize>();
        let blocks: usize = wanted.iter().map(tiles).sum();
        let [[dx, add_dx], [dw, add_dw]] = [grad(&mut slots[0]), grad(&mut slots[1])];
        let for_bias = if slots[2].is_some() { o.div_ceil(32) } else { 0 };
        let [db, add_db] = grad(&mut slots[2]);
        let math = gemm::math(gpu);
        if plan.is_large() {
            let dz = undo_gpu(gpu, y, dy, self.0, None, n, [db, add_db]);
            let launch = plan.launch(gpu, [blocks, 1, 1]);
            let args = args![&x[0], &x[1], &dz, dx, add_dx, dw, add_dw, n, i, o, math];
            gpu.launch("linear", "linear_bwd_large", launch, args);
        } else {
            // Thin tiles need more memory than small ones.
            let launch = plans[0].launch(gpu, [blocks + for_bias, 1, 1]);
            let args = args![&x[0], &x[1], y, dy, dx, add_dx, dw, add_dw, db, add_db, n, i, o, self.0.arg(), math];
            gpu.launch("linear", plans[0].kernel(["linear_bwd_thin", "linear_bwd_small", ""]), launch, args);
        }
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, i, o) = dims(x);
        let mut y = Tensor::empty(cx, &[n, o]);
        on_device!(cx, T => {
            let out = y.slice_mut::<T>();
            product(Matrix::new(x[0].slice(), n, i), Matrix::new(x[1].slice(), o, i).t(), out, false);
            finish(out, x[2].slice::<T>(), self.0);
        }, gpu => self.forward_gpu(gpu, cx, x, &y));
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, i, o) = dims(x);
        on_device!(cx, T => {
            let dz = undo(y[0].slice::<T>(), dy.slice(), self.0, &mut dx[2], o);
            let dz = Matrix::new(&dz, n, o);
            if let Some(slot) = &mut dx[0] {
                let (out, fresh) = slot.write::<T>();
                product(dz, Matrix::new(x[1].slice(), o, i), out, !fresh);
            }
            if let Some(slot) = &mut dx[1] {
                let (out, fresh) = slot.write::<T>();
                product(dz.t(), Matrix::new(x[0].slice(), n, i), out, !fresh);
            }
        }, gpu => self.backward_gpu(gpu, x, &y[0], dy, dx));
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let (n, i, o) = dims(x);
        Cost { flops: 2.0 * (n * i * o) as f64, bytes: size(x) + size([y]) }
    }
}

#[cfg(test)]
mod tests {
    use super::Activation;
    use crate::gradcheck::gradcheck;

    #[test]
    fn linear_gradients() {
        for activation in [Activation::None, Activation::Tanh, Activation::Relu] {
            assert!(gradcheck(&[&[3, 4], &[5, 4], &[5]], |_, x| x[0].linear(x[1], x[2], activation)) < 1e-7);
        }
        assert!(gradcheck(&[&[70, 65], &[90, 65], &[90]], |_, x| x[0].linear(x[1], x[2], Activation::None)) < 1e-7);
    }
}
