//! The two convolutions on a GPU: which blocks they are cut into; and by plain kernels, for `DOOD_CUDA_NAIVE=1`.

use super::{super::live::check_live, ConvPair, Dims};
use crate::{
    DType, MathMode, Tensor,
    gpu::{Arg, Gpu, Launch, Span, args},
    kernels::conv_pair::*,
    slot::{Slot, grad},
};

/// Which of the kernels run, those with `_tensor` at their names' end or those without, and on what numbers.
#[derive(Clone, Copy)]
struct Kind {
    dtype: DType,
    tensor: bool,
}

impl Kind {
    fn of(gpu: &Gpu) -> Self {
        Kind { dtype: gpu.dtype(), tensor: gpu.math() != MathMode::F32 }
    }

    /// Elements from one row of a or z₂ to the next in shared memory.
    fn row(self) -> usize {
        if self.tensor { TENSOR_ROW } else { PLAIN_ROW }
    }

    /// The strips of each of as few blocks as hold `columns`, at most 12. Tensor cores take `square` strips at a time.
    fn strips(self, columns: usize, square: usize) -> usize {
        let strips = columns.div_ceil(STRIP);
        let strips = strips.div_ceil(strips.div_ceil(12));
        if self.tensor { strips.next_multiple_of(square) } else { strips }
    }
}

/// The launch of conv_pair_fwd, the rows per block and the strips per row.
fn forward_launch(kind: Kind, d: &Dims) -> (Launch, usize, usize) {
    assert!(
        d.features().max(d.h * d.w) <= i32::MAX as usize,
        "conv_pair: an image or its features exceed 2^31 elements"
    );
    let (height, strips) = (d.h - 4, kind.strips(d.w - 4, 4));
    let band = height.div_ceil(height.div_ceil(12));
    let wide = strips * STRIP;
    let blocks = height.div_ceil(band) * (d.w - 4).div_ceil(wide) * d.c2.div_ceil(OUTS);
    let work = (band + 4) * X_ROW + (band + 2) * INS * kind.row();
    let shared = 10 * INS + INS * 9 * OUT_STEP + work.max(OUTS * (band * wide + 4));
    let threads = match kind.tensor {
        true => 32 * band.div_ceil(4) * strips / 4,
        false => (band * strips * d.c2.min(OUTS).div_ceil(8)).next_multiple_of(32),
    };
    (Launch::rows(d.n * blocks, threads).shared(shared * kind.dtype.bytes()), band, strips)
}

/// How conv_pair_bwd_input is cut into blocks.
struct InputPlan {
    launch: Launch,
    /// Rows and columns of x per tile, and tiles per image.
    band: usize,
    wide: usize,
    tiles: usize,
}

impl InputPlan {
    fn new(kind: Kind, d: &Dims) -> Self {
        // Two blocks of floats, or one of doubles, are to find room on a multiprocessor.
        let most = if kind.dtype == DType::F32 { 30 } else { 14 };
        // A tile that is the whole image has no halo. A thread has a strip of z₁: at most 12 strips in 32 rows.
        let down = if d.h <= most + 4 { 1 } else { d.h.div_ceil(most) };
        let across = if d.w <= 50 { 1 } else { d.w.div_ceil(44) };
        let (band, wide) = (d.h.div_ceil(down), d.w.div_ceil(across));
        let tiles = d.h.div_ceil(band) * d.w.div_ceil(wide);
        let strips = kind.strips(if across == 1 { d.w - 2 } else { wide + 4 }, 4);

        let planes = INS * ((band + 4) * kind.row()).max((band + 2) * Z1_ROW);
        let sums = INS * 10 * (1 + strips) + INS * (TAPS + 9 * IN_STEP);
        let shared = sums + band * kind.row() + (band + 4) * X_ROW + planes;
        let launch = Launch::rows(d.n * tiles, 32 * strips).shared(shared * kind.dtype.bytes());
        InputPlan { launch, band, wide, tiles }
    }
}

/// How conv_pair_bwd_weights is cut into blocks.
struct WeightsPlan {
    launch: Launch,
    /// Rows of z₂ per tile, and parts per image.
    tall: usize,
    parts: usize,
}

impl WeightsPlan {
    fn new(kind: Kind, d: &Dims) -> Self {
        let tall = if kind.dtype == DType::F32 { 12 } else { 6 };
        let strips = kind.strips(d.w - 4, 2);
        let chunks = d.c1.div_ceil(INS) * d.c2.div_ceil(OUTS);
        let tiles = (d.h - 4).div_ceil(tall) * (d.w - 4).div_ceil(strips * STRIP);
        let parts = 128usize.div_ceil((d.n * chunks).max(1)).min(tiles);

        let tile = (tall + 4) * X_ROW + (tall * OUTS + (tall + 2) * INS) * kind.row();
        let shared = 10 * INS + OUTS + tile.max(strips.div_ceil(2) * OUTS * INS * 9);
        let launch = Launch::rows(d.n * parts * chunks, 32 * strips).shared(shared * kind.dtype.bytes());
        WeightsPlan { launch, tall, parts }
    }
}

impl ConvPair {
    fn live(&self, n: usize) -> Arg {
        check_live("conv_pair", self.live.as_ref(), n);
        Arg::input(self.live.as_ref())
    }

    pub(super) fn forward_gpu(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor) {
        if gpu.naive() {
            return self.forward_naive(gpu, x, y);
        }
        let d = Dims::of(x);
        let kind = Kind::of(gpu);
        let (launch, band, strips) = forward_launch(kind, &d);
        let live = self.live(d.n);
        let args = args![&x[0], &x[1], &x[2], &x[3], &x[4], live, y.out(), d.h, d.w, d.c1, d.c2, band, strips];
        let kernel = if kind.tensor { "conv_pair_fwd_tensor" } else { "conv_pair_fwd" };
        gpu.launch("conv_pair", kernel, launch, args);
    }

    pub(super) fn backward_gpu(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor, dy: &Tensor, slots: &mut [Option<Slot>]) {
        if gpu.naive() {
            return self.backward_naive(gpu, x, y, dy, slots);
        }
        let (d, cx, kind) = (Dims::of(x), y.device(), Kind::of(gpu));
        let [[dx, add], first @ .., dw2, db2] = [0, 1, 2, 3, 4].map(|i| grad(&mut slots[i]));
        let (weights1, weights2) = (d.c1 * 9, d.c2 * d.c1 * 9);

        let plan = InputPlan::new(kind, &d);
        let sums1 = Tensor::empty(cx, &[d.n * plan.tiles, weights1 + d.c1]);
        let sizes = args![d.h, d.w, d.c1, d.c2, plan.band, plan.wide];
        let args = args![&x[0], &x[1], &x[2], &x[3], self.live(d.n), y, dy, dx, add, sums1.out()];
        let kernel = if kind.tensor { "conv_pair_bwd_input_tensor" } else { "conv_pair_bwd_input" };
        gpu.launch("conv_pair", kernel, plan.launch, &[&args[..], sizes].concat());

        let plan = WeightsPlan::new(kind, &d);
        let sums2 = Tensor::empty(cx, &[d.n * plan.parts, weights2 + d.c2]);
        let sizes = args![d.h, d.w, d.c1, d.c2, plan.tall, plan.parts];
        let args = args![&x[0], &x[1], &x[2], self.live(d.n), y, dy, sums2.out()];
        let kernel = if kind.tensor { "conv_pair_bwd_weights_tensor" } else { "conv_pair_bwd_weights" };
        gpu.launch("conv_pair", kernel, plan.launch, &[&args[..], sizes].concat());

        for (sums, [[dw, add_w], [db, add_b]], weights, biases) in
            [(sums1, first, weights1, d.c1), (sums2, [dw2, db2], weights2, d.c2)]
        {
            let launch = Launch::rows((weights + biases).div_ceil(32), 256);
            let args = args![&sums, dw, add_w, db, add_b, weights, biases, sums.shape()[0]];
            gpu.launch("conv_pair", "conv_pair_sum", launch, args);
        }
    }
}

/// One of the two convolutions with its ReLU, by plain kernels.
struct Layer {
    images: usize,
    ins: usize,
    outs: usize,
    height: usize,
    width: usize,
}

impl Layer {
    /// Of the first or the second convolution.
    fn both(d: &Dims) -> [Self; 2] {
        [
            Layer { images: d.n, ins: 1, outs: d.c1, height: d.h, width: d.w },
            Layer { images: d.n, ins: d.c1, outs: d.c2, height: d.h - 2, width: d.w - 2 },
        ]
    }

    /// Elements of x and of y.
    fn elements(&self) -> [usize; 2] {
        let Layer { images, ins, outs, height, width } = *self;
        [images * ins * height * width, images * outs * (height - 2) * (width - 2)]
    }

    fn sizes(&self) -> [Arg; 5] {
        [self.images, self.ins, self.outs, self.height, self.width].map(Arg::from)
    }

    fn forward(&self, gpu: &Gpu, [x, w, b]: [&Tensor; 3], live: Arg, y: &Tensor) {
        let args = [&args![x, w, b, live, y.out()][..], &self.sizes()].concat();
        gpu.launch("naive", "naive_conv_fwd", Launch::elements(self.elements()[1]), &args);
    }

    /// Images that are not live need no mention: their y is 0, and nothing goes back through that.
    fn backward(&self, gpu: &Gpu, [x, w, y, dy]: [&Tensor; 4], [dx, dw, db]: [[Arg; 2]; 3]) {
        let wanted = |[to, _]: [Arg; 2]| !matches!(to, Arg::Out(Span::NONE));
        let launch = |kernel, n, args: &[Arg], sizes: &[Arg]| {
            gpu.launch("naive", kernel, Launch::elements(n), &[args, sizes].concat());
        };
        if wanted(dx) {
            launch("naive_conv_bwd_input", self.elements()[0], args![w, y, dy, dx[0], dx[1]], &self.sizes());
        }
        if wanted(dw) {
            let weights = self.outs * self.ins * 9;
            launch("naive_conv_bwd_weights", weights, args![x, y, dy, dw[0], dw[1]], &self.sizes());
        }
        if wanted(db) {
            let sizes = [self.images, self.outs, self.height - 2, self.width - 2].map(Arg::from);
            launch("naive_conv_bwd_bias", self.outs, args![y, dy, db[0], db[1]], &sizes);
        }
    }
}

impl ConvPair {
    /// a, the result of the first convolution.
    fn first_naive(&self, gpu: &Gpu, x: &[Tensor], layer: &Layer) -> Tensor {
        let a = Tensor::empty(x[0].device(), &[layer.elements()[1]]);
        layer.forward(gpu, [&x[0], &x[1], &x[2]], self.live(layer.images), &a);
        a
    }

    fn forward_naive(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor) {
        let [first, second] = Layer::both(&Dims::of(x));
        let a = self.first_naive(gpu, x, &first);
        second.forward(gpu, [&a, &x[3], &x[4]], self.live(second.images), y);
    }

    fn backward_naive(&self, gpu: &Gpu, x: &[Tensor], y: &Tensor, dy: &Tensor, slots: &mut [Option<Slot>]) {
        let [first, second] = Layer::both(&Dims::of(x));
        let [dx, dw1, db1, dw2, db2] = [0, 1, 2, 3, 4].map(|i| grad(&mut slots[i]));
        let a = self.first_naive(gpu, x, &first);
        let da = Tensor::empty(y.device(), a.shape());
        second.backward(gpu, [&a, &x[3], y, dy], [[da.out(), Arg::Int(0)], dw2, db2]);
        first.backward(gpu, [&x[0], &x[1], &a, &da], [dx, dw1, db1]);
    }
}
