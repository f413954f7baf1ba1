//! The wide layer on a GPU: dropout as bits, products that read through them, and the gradient of the weights for many calls at once.

use super::{
    super::{
        dropout,
        gemm::{self, Plan, naive_product},
    },
    Dims, DropoutLinear, Keep, linear,
};
use crate::{
    Device, Tensor,
    gpu::{Arg, Gpu, Launch, Span, args},
    kernels::common::TABLE,
    slot::{Late, Slot, grad},
};

/// Calls that one launch serves: at most four neighbours of one rate.
struct Group<'a> {
    /// The first of them.
    from: usize,
    calls: &'a [(usize, Keep)],
}

impl Group<'_> {
    /// Something of each call, and something else in the places of calls that are not there.
    fn each<A>(&self, of_call: impl Fn(usize, &(usize, Keep)) -> A, none: impl Fn() -> A) -> [A; 4] {
        std::array::from_fn(|i| self.calls.get(i).map_or_else(&none, |call| of_call(i, call)))
    }

    /// What kept elements are multiplied by.
    fn scale(&self) -> f64 {
        self.calls[0].1.scale()
    }
}

impl DropoutLinear {
    fn groups(&self) -> Vec<Group<'_>> {
        let mut from = 0;
        let same_rate = self.calls.chunk_by(|a, b| a.1.scale() == b.1.scale());
        let all = same_rate.flat_map(|calls| calls.chunks(4)).map(|calls| {
            from += calls.len();
            Group { from: from - calls.len(), calls }
        });
        all.collect()
    }

    /// A bit per element of x̂, 32 columns to a word.
    fn bits(&self, gpu: &Gpu, cx: &Device, group: &Group, d: Dims) -> Tensor {
        let calls = group.calls.iter().map(|call| &call.1);
        dropout::bits(gpu, cx, calls, self.live.as_ref(), [d.n, d.k])
    }

    /// Returns the bits of every group, for the backward.
    pub(super) fn forward_gpu(&self, gpu: &Gpu, cx: &Device, x: &[Tensor], y: &Tensor) -> Vec<Tensor> {
        let d = self.dims(x);
        let mut saved = vec![];
        for group in self.groups() {
            let bits = self.bits(gpu, cx, &group, d);
            let sums = if gpu.naive() { group.sums_naive(gpu, x, &bits, d) } else { group.sums(gpu, x, &bits, d) };
            let out = y.rows(group.from * d.n, group.calls.len() * d.n).out();
            linear::finish_gpu(gpu, &sums, &x[1], self.live.as_ref(), out, self.activation, d.n);
            saved.push(bits);
        }
        saved
    }

    pub(super) fn backward_gpu(&self, gpu: &Gpu, x: &[Tensor], y: &[Tensor], dy: &Tensor, slots: &mut [Option<Slot>]) {
        let d = self.dims(x);
        let db = grad(&mut slots[1]);
        let dz = linear::undo_gpu(gpu, &y[0], dy, self.activation, self.live.as_ref(), d.n, db);
        let mut inputs: Vec<[Arg; 2]> = slots[2..].iter_mut().map(grad).collect();
        for (i, input) in inputs.iter().enumerate() {
            if self.calls.iter().all(|c| c.0 != i)
                && let [Arg::Out(unused), Arg::Int(0)] = *input
            {
                gpu.clear(unused);
            }
        }
        for (group, bits) in self.groups().iter().zip(&y[1..]) {
            let dz = dz.rows(group.from * d.n, group.calls.len() * d.n);
            if gpu.naive() {
                group.backward_naive(gpu, x, bits, &dz, &mut slots[0], &mut inputs, d);
                continue;
            }
            if let Some(slot) = &mut slots[0] {
                let uses = &mut slot.late::<Uses>().0;
                uses.extend(group.uses(x, bits, &dz, d));
                if uses.len() >= TABLE {
                    let enough: Vec<Use> = uses.drain(..TABLE).collect();
                    form(&enough, slot);
                }
            }
            group.backward(gpu, x, bits, &dz, &mut inputs, d);
        }
    }
}

/// What a call adds to the gradient of the weights: dzᵀ·x̂.
struct Use {
    x: Tensor,
    /// Of its whole group, and its own.
    bits: (Tensor, Span),
    dz: Tensor,
    scale: f64,
}

/// Calls whose share in the gradient of the weights is not yet formed. The gradient is several times as large as what a call adds
/// to it is made from: so it is read and written once for [`TABLE`] calls.
#[derive(Default)]
struct Uses(Vec<Use>);

impl Late for Uses {
    fn form(self: Box<Self>, slot: &mut Slot) {
        form(&self.0, slot);
    }
}

/// Adds Σ dzᵀ·x̂ to the gradient of the weights, for calls of any tape, rates and sizes.
fn form(uses: &[Use], slot: &mut Slot) {
    let alike = |a: &Use, b: &Use| a.scale == b.scale && a.x.shape() == b.x.shape();
    for uses in uses.chunk_by(alike).flat_map(|uses| uses.chunks(TABLE)) {
        let (Use { x, dz, scale, .. }, [dw, add_dw]) = (&uses[0], slot.arg());
        let gpu = x.device().gpu().expect("calls of a GPU are formed on it");
        let ([n, k], o) = ([x.shape()[0], x.shape()[1]], dz.shape()[1]);
        let tensors: Vec<&Tensor> = uses.iter().flat_map(|u| [&u.x, &u.dz]).collect();
        let plan = Plan::several(gemm::packed(&[k, o], &tensors), &[[o, k]]);
        let [down, across] = plan.tiles(o, k);
        let [x, dz] = [|u: &Use| u.x.span(), |u: &Use| u.dz.span()].map(|of| Arg::table(uses.iter().map(of)));
        let bits = Arg::table(uses.iter().map(|u| u.bits.1));
        gpu.launch(
            "dropout_linear",
            plan.kernel(["dropout_linear_weights_small", "dropout_linear_weights_large"]),
            plan.launch(gpu, [down * across, 1, 1]),
            args![x, bits, dz, Arg::Real(*scale), dw, add_dw, n, uses.len(), k, o, gemm::math(gpu)],
        );
    }
}

impl Group<'_> {
    /// The bits of one call.
    fn bits_of(&self, bits: &Tensor, call: usize, d: Dims) -> Span {
        let bytes = size_of::<u32>() * d.words();
        Span { address: bits.span().address + (call * bytes) as u64, bytes }
    }

    fn uses(&self, x: &[Tensor], bits: &Tensor, dz: &Tensor, d: Dims) -> Vec<Use> {
        let one = |(call, (input, _)): (usize, &(usize, Keep))| Use {
            x: x[2 + input].clone(),
            bits: (bits.clone(), self.bits_of(bits, call, d)),
            dz: dz.rows(call * d.n, d.n),
            scale: self.scale(),
        };
        self.calls.iter().enumerate().map(one).collect()
    }

    /// Σ x̂·Wᵀ as `[parts, calls·N, O]`.
    fn sums(&self, gpu: &Gpu, x: &[Tensor], bits: &Tensor, d: Dims) -> Tensor {
        let rows = self.calls.len() * d.n;
        let inputs: Vec<&Tensor> = self.calls.iter().map(|(input, _)| &x[2 + input]).collect();
        let plan = Plan::one(gemm::packed(&[d.k], &[&[&x[0]], &inputs[..]].concat()), rows, d.o, d.k);
        let [down, across] = plan.tiles(rows, d.o);
        let sums = Tensor::empty(x[0].device(), &[plan.parts, rows, d.o]);
        let inputs = Arg::table(inputs.iter().map(|x| x.span()));
        let bits = Arg::table((0..self.calls.len()).map(|call| self.bits_of(bits, call, d)));
        let (scale, calls) = (Arg::Real(self.scale()), self.calls.len());
        gpu.launch(
            "dropout_linear",
            plan.kernel(["dropout_linear_fwd_small", "dropout_linear_fwd_large"]),
            plan.launch(gpu, [down, across, plan.parts]),
            args![inputs, bits, scale, &x[0], sums.out(), d.n, calls, d.k, d.o, plan.chunk, gemm::math(gpu)],
        );
        sums
    }

    /// From dz of the group's rows to the gradients of the inputs, whose flags it sets for the next group.
    fn backward(&self, gpu: &Gpu, x: &[Tensor], bits: &Tensor, dz: &Tensor, inputs: &mut [[Arg; 2]], d: Dims) {
        if self.calls.iter().all(|(input, _)| inputs[*input][0].is_null()) {
            return;
        }
        let plan = Plan::several(gemm::packed(&[d.k, d.o], &[&x[0], dz]), &[[d.n, d.k]]);
        let blocks = self.calls.len() * plan.tiles(d.n, d.k).iter().product::<usize>();
        let nowhere = [Arg::Out(Span::NONE), Arg::Int(0)];
        let of_call = |i: usize, (input, _): &(usize, Keep)| {
            let same = |(other, call): (usize, &(usize, Keep))| ((call.0 == *input) as u32) << other;
            let calls: u32 = self.calls.iter().enumerate().map(same).sum();
            let [dx, add_dx] = if calls.trailing_zeros() as usize == i { inputs[*input] } else { nowhere };
            [dx, add_dx, Arg::Word(calls)]
        };
        let mut args = self.each(of_call, || [nowhere[0], nowhere[1], Arg::Word(0)]).concat();
        args.extend([Arg::Words(bits.span()), Arg::Real(self.scale()), (&x[0]).into(), dz.into()]);
        args.extend([d.n, d.k, d.o].map(Arg::from));
        args.push(gemm::math(gpu));
        let kernel = plan.kernel(["dropout_linear_bwd_small", "dropout_linear_bwd_large"]);
        gpu.launch("dropout_linear", kernel, plan.launch(gpu, [blocks, 1, 1]), &args);
        self.calls.iter().for_each(|(input, _)| inputs[*input][1] = Arg::Int(1));
    }
}

/// The same with plain kernels, for `DOOD_CUDA_NAIVE=1`: x̂ and its gradient are written out.
impl Group<'_> {
    /// The dropout of a call, of `from` `[N, K]`: its input, or the gradient of its x̂.
    fn drop_naive(&self, gpu: &Gpu, call: usize, bits: &Tensor, from: &Tensor, [to, add]: [Arg; 2], d: Dims) {
        let bits = Arg::Words(self.bits_of(bits, call, d));
        let args = args![from, bits, to, add, d.n, d.k, Arg::Real(self.scale())];
        gpu.launch("dropout", "dropout", Launch::elements(d.n * d.k), args);
    }

    /// x̂ of all calls, `[calls·N, K]`.
    fn kept_naive(&self, gpu: &Gpu, x: &[Tensor], bits: &Tensor, d: Dims) -> Tensor {
        let kept = Tensor::empty(x[0].device(), &[self.calls.len() * d.n, d.k]);
        for (call, (input, _)) in self.calls.iter().enumerate() {
            let to = [kept.rows(call * d.n, d.n).out(), Arg::Int(0)];
            self.drop_naive(gpu, call, bits, &x[2 + input], to, d);
        }
        kept
    }

    fn sums_naive(&self, gpu: &Gpu, x: &[Tensor], bits: &Tensor, d: Dims) -> Tensor {
        let kept = self.kept_naive(gpu, x, bits, d);
        let sums = Tensor::empty(x[0].device(), &[1, self.calls.len() * d.n, d.o]);
        let [kept, w] = [&kept, &x[0]].map(gemm::Matrix::of);
        naive_product(gpu, kept, w.t(), [sums.out(), Arg::Int(0)]);
        sums
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_naive(
        &self,
        gpu: &Gpu,
        x: &[Tensor],
        bits: &Tensor,
        dz: &Tensor,
        dw: &mut Option<Slot>,
        inputs: &mut [[Arg; 2]],
        d: Dims,
    ) {
        let kept = self.kept_naive(gpu, x, bits, d);
        naive_product(gpu, gemm::Matrix::of(dz).t(), gemm::Matrix::of(&kept), grad(dw));
        for (call, (input, _)) in self.calls.iter().enumerate() {
            if inputs[*input][0].is_null() {
                continue;
            }
            let (dz, dkept) = (dz.rows(call * d.n, d.n), Tensor::empty(x[0].device(), &[d.n, d.k]));
            let [dz, w] = [&dz, &x[0]].map(gemm::Matrix::of);
            naive_product(gpu, dz, w, [dkept.out(), Arg::Int(0)]);
            self.drop_naive(gpu, call, bits, &dkept, inputs[*input], d);
            inputs[*input][1] = Arg::Int(1);
        }
    }
}
