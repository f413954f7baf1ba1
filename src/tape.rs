//! The tape: one step's op applications in the order they ran. Backward walks it in reverse.
//! No graph search, no hash maps, no reference cycles, so the order (and every bit) is reproducible.

use crate::{
    Device, Grads, ParamId, Params, Tensor,
    device::StepScope,
    op::{Cost, Op},
    profile,
    slot::Slot,
};
use std::cell::RefCell;

/// One training or evaluation step. Dropping it frees every activation.
pub struct Tape<'p> {
    device: Device,
    params: Option<&'p Params>,
    record: bool,
    /// Whether parameters have gradients.
    trains: bool,
    nodes: RefCell<Vec<Node>>,
    param_vars: RefCell<Vec<Option<u32>>>,
    /// The values that constants take, in reverse order, whatever they are asked to be.
    frozen: RefCell<Vec<Tensor>>,
    _step: StepScope,
}

struct Node {
    /// `None` for a leaf, or where no gradient can be asked for.
    op: Option<Box<dyn Op>>,
    name: &'static str,
    inputs: Vec<u32>,
    /// `[0]` is the result, the rest is what the op saved for its backward. Nothing once it is forgotten.
    y: Vec<Tensor>,
    param: Option<ParamId>,
    wants_grad: bool,
    watched: bool,
    rectified: bool,
}

const CONSTANT: &str = "constant";

/// A recorded value. `Copy`, and unable to outlive its tape.
#[derive(Clone, Copy)]
pub struct Var<'t> {
    tape: &'t Tape<'t>,
    id: u32,
}

/// Gradients of inputs and watched values, as found by [`Tape::backward`].
pub struct NodeGrads(Vec<Option<Tensor>>);

impl NodeGrads {
    /// d loss / d `var`; zeros where the loss does not depend on it. `var` must be an input or watched.
    pub fn of(&self, var: Var) -> Tensor {
        let value = var.value();
        self.0[var.id as usize].clone().unwrap_or_else(|| Tensor::zeros(value.device(), value.shape()))
    }
}

impl<'p> Tape<'p> {
    /// Records for a backward pass; parameters come from `params`.
    pub fn new(params: &'p Params) -> Self {
        Self::build(params.device(), Some(params), true)
    }

    /// Records for a backward pass to [`Tape::input`]s only: parameters are constants.
    pub fn frozen(params: &'p Params) -> Self {
        Tape { trains: false, ..Self::new(params) }
    }

    /// Forward only: nothing is saved for a backward pass.
    pub fn eval(params: &'p Params) -> Self {
        Self::build(params.device(), Some(params), false)
    }

    /// Forward only, for finite differences: the k-th constant takes the value of the k-th constant of `recorded`.
    ///
    /// So everything that stops gradients (detached values, sampled decisions, learning signals) keeps its value while parameters
    /// move. Both tapes must record the same computation.
    pub fn eval_frozen(params: &'p Params, recorded: &Tape) -> Self {
        let nodes = recorded.nodes.borrow();
        let constants = nodes.iter().rev().filter(|n| n.name == CONSTANT).map(|n| n.y[0].clone()).collect();
        Tape { frozen: RefCell::new(constants), ..Self::eval(params) }
    }

    /// Records functions of inputs alone.
    pub fn without_params(device: &Device) -> Self {
        Self::build(device, None, true)
    }

    fn build(device: &Device, params: Option<&'p Params>, record: bool) -> Self {
        let count = params.map_or(0, |p| p.len());
        Tape {
            device: device.clone(),
            params,
            record,
            trains: record,
            nodes: RefCell::default(),
            param_vars: vec![None; count].into(),
            frozen: RefCell::default(),
            _step: device.step(),
        }
    }

    /// The device that every value of this tape lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of recorded values.
    pub fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    /// Whether nothing is recorded yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&'p self, node: Node) -> Var<'p> {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        Var { tape: self, id: (nodes.len() - 1) as u32 }
    }

    #[track_caller]
    fn leaf(&'p self, name: &'static str, value: Tensor, param: Option<ParamId>, wants_grad: bool) -> Var<'p> {
        assert!(value.device() == &self.device, "{name}: the tensor lives on another device than the tape");
        self.push(Node {
            op: None,
            name,
            inputs: vec![],
            y: vec![value],
            param,
            wants_grad: wants_grad && self.record,
            watched: false,
            rectified: false,
        })
    }

    /// A value that needs no gradient: a batch of images, noise.
    #[track_caller]
    pub fn constant(&'p self, value: Tensor) -> Var<'p> {
        let value = match self.frozen.borrow_mut().pop() {
            None => value,
            Some(frozen) => {
                assert_eq!(frozen.shape(), value.shape(), "the frozen constants are those of another computation");
                frozen
            }
        };
        self.leaf(CONSTANT, value, None, false)
    }

    /// A value whose gradient [`Tape::backward`] returns.
    #[track_caller]
    pub fn input(&'p self, value: Tensor) -> Var<'p> {
        self.leaf("input", value, None, true)
    }

    /// A parameter; the same `Var` each time it is asked for.
    pub fn param(&'p self, id: ParamId) -> Var<'p> {
        if let Some(id) = self.param_vars.borrow()[id.index()] {
            return Var { tape: self, id };
        }
        let value = self.params.expect("a tape without parameters was asked for one").get(id);
        let var = self.leaf("parameter", value, Some(id), self.trains);
        self.param_vars.borrow_mut()[id.index()] = Some(var.id);
        var
    }

    /// Applies `op` and records it.
    #[track_caller]
    pub fn apply(&'p self, op: impl Op, inputs: &[Var<'p>]) -> Var<'p> {
        let (x, wants_grad) = {
            let nodes = self.nodes.borrow();
            let x: Vec<Tensor> = inputs.iter().map(|v| nodes[v.id as usize].y[0].clone()).collect();
            (x, self.record && inputs.iter().any(|v| nodes[v.id as usize].wants_grad))
        };
        self.enter(op.name());
        let timer = profile::start(&self.device);
        let mut y = op.forward(&self.device, &x);
        timer.stop(op.name(), profile::Phase::Forward, || op.cost(&x, &y[0]));
        if !wants_grad {
            y.truncate(1);
        }
        self.push(Node {
            name: op.name(),
            rectified: op.rectified(),
            op: if wants_grad { Some(Box::new(op)) } else { None },
            inputs: inputs.iter().map(|v| v.id).collect(),
            y,
            param: None,
            wants_grad,
            watched: false,
        })
    }

    /// Adds d `loss` / d parameters to `grads`, and returns the gradients of inputs and watched values.
    ///
    /// `loss` has one element.
    #[track_caller]
    pub fn backward(&self, loss: Var, grads: &mut Grads) -> NodeGrads {
        let nodes = self.nodes.borrow();
        assert_eq!(nodes[loss.id as usize].y[0].len(), 1, "backward of a value that is not a scalar");
        let mut windows = grads.split();
        let mut sums: Vec<Option<Slot>> = (0..nodes.len()).map(|_| None).collect();
        let mut kept: Vec<Option<Tensor>> = vec![None; nodes.len()];
        sums[loss.id as usize] = Some(Slot::owned(Tensor::full(&self.device, &[1], 1.0)));
        for (i, node) in nodes.iter().enumerate().rev() {
            let Some(op) = &node.op else { continue };
            let Some(dy) = sums[i].take() else { continue }; // the loss does not depend on it
            let dy = dy.into_tensor();
            if node.watched {
                kept[i] = Some(dy.clone());
            }
            let x: Vec<Tensor> = node.inputs.iter().map(|&j| nodes[j as usize].y[0].clone()).collect();
            // Each input's sum is lent to the op. An input that appears twice gets a fresh one the second time, and the two are
            // added when they come back.
            let mut dx: Vec<Option<Slot>> = Vec::with_capacity(x.len());
            for &j in &node.inputs {
                let input = &nodes[j as usize];
                dx.push(input.wants_grad.then(|| {
                    let window = || input.param.and_then(|id| windows[id.index()].take());
                    sums[j as usize]
                        .take()
                        .or_else(window)
                        .unwrap_or_else(|| Slot::fresh(&self.device, input.y[0].shape()))
                }));
            }
            self.enter(op.name());
            let timer = profile::start(&self.device);
            op.backward(&self.device, &x, &node.y, &dy, &mut dx);
            timer.stop(op.name(), profile::Phase::Backward, || op.cost(&x, &node.y[0]));
            for (&j, slot) in node.inputs.iter().zip(dx) {
                let Some(slot) = slot else { continue };
                let sum = &mut sums[j as usize];
                *sum = Some(match sum.take() {
                    None => slot,
                    Some(first) => first.plus(slot),
                });
            }
        }
        for (i, node) in nodes.iter().enumerate().filter(|(_, node)| node.op.is_none() && node.wants_grad) {
            match (sums[i].take(), node.param) {
                (Some(mut slot), Some(_)) => slot.settle(),
                (slot, _) => kept[i] = slot.map(Slot::into_tensor),
            }
        }
        NodeGrads(kept)
    }

    /// Names the op at work, for the messages of a device.
    fn enter(&self, op: &'static str) {
        if let Some(gpu) = self.device.gpu() {
            gpu.enter(op);
        }
    }

    /// What the recorded ops must do forward at the very least ([`Op::cost`]): those through which a gradient can be asked for.
    pub fn cost(&self) -> Cost {
        let nodes = self.nodes.borrow();
        let costs = nodes.iter().filter_map(|node| {
            let x: Vec<Tensor> = node.inputs.iter().map(|&j| nodes[j as usize].y[0].clone()).collect();
            Some(node.op.as_ref()?.cost(&x, &node.y[0]))
        });
        costs.fold(Cost::default(), |a, b| Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes })
    }

    /// The name of the first op whose result is not finite, and which of them it was, for error messages.
    pub fn first_not_finite(&self) -> Option<(&'static str, usize)> {
        self.nodes
            .borrow()
            .iter()
            .enumerate()
            .find(|(_, n)| n.y.first().is_some_and(|y| !y.is_finite()))
            .map(|(i, n)| (n.name, i))
    }
}

impl<'t> Var<'t> {
    /// The value.
    pub fn value(self) -> Tensor {
        self.tape.nodes.borrow()[self.id as usize].y[0].clone()
    }

    /// The size along each dimension.
    pub fn shape(self) -> Vec<usize> {
        self.tape.nodes.borrow()[self.id as usize].y[0].shape().to_vec()
    }

    /// The tape that recorded it.
    pub fn tape(self) -> &'t Tape<'t> {
        self.tape
    }

    /// Whether it is the result of an op that says so of itself ([`Op::rectified`]).
    pub(crate) fn rectified(self) -> bool {
        self.tape.nodes.borrow()[self.id as usize].rectified
    }

    /// The value without its history: a constant.
    pub fn detach(self) -> Var<'t> {
        self.tape.constant(self.value())
    }

    /// Frees the value, which nobody asks for again, on a tape without a backward pass: in one, ops look at all of their inputs.
    pub(crate) fn forget(self) {
        if !self.tape.record {
            self.tape.nodes.borrow_mut()[self.id as usize].y.clear();
        }
    }

    /// Asks [`Tape::backward`] to keep this value's gradient. Returns the same value.
    pub fn watch(self) -> Var<'t> {
        self.tape.nodes.borrow_mut()[self.id as usize].watched = true;
        self
    }
}
