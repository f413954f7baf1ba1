//! All parameters of a model in one slab, addressed by [`ParamId`]. Layers hold ids, not memory, so a model is plain data, and the
//! optimiser, the gradient norm and checkpoints see one flat array.

use crate::{DType, Device, Tensor, device::on_device, real::Real, slot::Slot};
use std::ops::Range;

/// Which parameter of a [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(u32);

impl ParamId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Name, shape and place of one parameter.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Full name with dots, as in checkpoints.
    pub name: String,
    /// Size along each dimension.
    pub shape: Vec<usize>,
    /// Learning-rate group.
    pub group: usize,
    at: usize,
}

impl Spec {
    /// Where the values lie in a slab.
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.shape.iter().product::<usize>()
    }
}

/// Every parameter starts on a multiple of this many elements, so that vector loads are aligned.
const ALIGN: usize = 64;

/// Collects parameters in declaration order, which is also checkpoint order.
#[derive(Default)]
pub struct ParamsBuilder {
    specs: Vec<Spec>,
    values: Vec<f32>,
    /// Elements of the slab so far.
    len: usize,
    blank: bool,
    prefix: String,
    group: usize,
}

impl ParamsBuilder {
    /// Nothing declared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing declared yet, and every value will be 0 whatever [`ParamsBuilder::add`] is told: for values that come from a file.
    /// Takes no memory for values before [`ParamsBuilder::build`].
    pub fn blank() -> Self {
        ParamsBuilder { blank: true, ..Self::default() }
    }

    /// What was added so far.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Runs `declare` with `name.` in front of every parameter that it adds.
    pub fn scope<R>(&mut self, name: &str, declare: impl FnOnce(&mut Self) -> R) -> R {
        let keep = self.prefix.len();
        self.prefix += name;
        self.prefix.push('.');
        let result = declare(self);
        self.prefix.truncate(keep);
        result
    }

    /// Puts the parameters added from here on into learning-rate group `group`.
    pub fn group(&mut self, group: usize) {
        self.group = group;
    }

    /// The full name that `name` would get here.
    pub fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Adds a parameter whose i-th element (row-major) starts as `value(i)`.
    pub fn add(&mut self, name: &str, shape: &[usize], value: impl FnMut(usize) -> f64) -> ParamId {
        let mut value = value;
        let at = self.len;
        let n: usize = shape.iter().product();
        self.len += n.next_multiple_of(ALIGN);
        if !self.blank {
            self.values.extend((0..n).map(|i| value(i) as f32));
            self.values.resize(self.len, 0.0);
        }
        let name = self.full_name(name);
        assert!(self.specs.iter().all(|s| s.name != name), "parameter {name} is declared twice");
        self.specs.push(Spec { name, shape: shape.to_vec(), group: self.group, at });
        ParamId(self.specs.len() as u32 - 1)
    }

    /// Moves everything to `device`.
    pub fn build(self, device: &Device) -> Params {
        let slab = if self.blank {
            Tensor::zeros(device, &[self.len])
        } else {
            Tensor::from_f32(device, &[self.len], &self.values)
        };
        Params { slab, specs: self.specs }
    }
}

/// The parameters of a model.
#[derive(Clone)]
pub struct Params {
    slab: Tensor,
    specs: Vec<Spec>,
}

impl Params {
    /// The device that holds them.
    pub fn device(&self) -> &Device {
        self.slab.device()
    }

    /// The number of parameters (tensors, not values).
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// The number of values in all parameters.
    pub fn values(&self) -> usize {
        self.specs.iter().map(|s| s.range().len()).sum()
    }

    /// One parameter, sharing the slab's memory.
    pub fn get(&self, id: ParamId) -> Tensor {
        self.window(&self.specs[id.index()])
    }

    /// All of them, in declaration order.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.specs.len() as u32).map(ParamId)
    }

    /// Names, shapes and places, in declaration order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// The id of the parameter called `name`.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.specs.iter().position(|s| s.name == name).map(|i| ParamId(i as u32))
    }

    /// One flat array with gaps for alignment; [`Spec::range`] tells what lies where.
    pub fn slab(&self) -> &Tensor {
        &self.slab
    }

    /// Replaces the values of one parameter.
    #[track_caller]
    pub fn set(&mut self, id: ParamId, values: &[f64]) {
        put(&mut self.slab, &self.specs[id.index()], values);
    }

    pub(crate) fn window(&self, spec: &Spec) -> Tensor {
        self.slab.window(spec.at, &spec.shape)
    }

    pub(crate) fn slab_mut<T: Real>(&mut self) -> &mut [T] {
        self.slab.slice_mut()
    }
}

/// Replaces the values of one parameter in a slab.
#[track_caller]
fn put(slab: &mut Tensor, spec: &Spec, values: &[f64]) {
    assert_eq!(spec.range().len(), values.len(), "set of parameter {}", spec.name);
    let device = slab.device().clone();
    on_device!(device, T => {
        for (x, &v) in slab.slice_mut::<T>()[spec.range()].iter_mut().zip(values) {
            *x = T::of(v);
        }
    }, _gpu => slab.window(spec.at, &spec.shape).send(values.iter().copied()));
}

/// The gradients of a [`Params`], laid out alike.
pub struct Grads {
    slab: Tensor,
    specs: Vec<Spec>,
}

impl Grads {
    /// All zero.
    pub fn zeros(params: &Params) -> Self {
        Grads { slab: Tensor::zeros(params.device(), params.slab.shape()), specs: params.specs.clone() }
    }

    /// For tapes without parameters.
    pub fn none(device: &Device) -> Self {
        Grads { slab: Tensor::zeros(device, &[0]), specs: vec![] }
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParamId) -> Tensor {
        let spec = &self.specs[id.index()];
        self.slab.window(spec.at, &spec.shape)
    }

    /// Replaces the gradient of one parameter.
    #[track_caller]
    pub fn set(&mut self, id: ParamId, values: &[f64]) {
        put(&mut self.slab, &self.specs[id.index()], values);
    }

    /// Replaces the gradient of one parameter by one that is on the device already.
    pub(crate) fn put(&mut self, id: ParamId, gradient: &Tensor) {
        let range = self.specs[id.index()].range();
        let device = self.slab.device().clone();
        on_device!(
            device,
            T => self.slab.slice_mut::<T>()[range].copy_from_slice(gradient.slice()),
            _gpu => self.slab.window(range.start, gradient.shape()).copy_on_gpu(gradient)
        );
    }

    /// One flat array, laid out like [`Params::slab`].
    pub fn slab(&self) -> &Tensor {
        &self.slab
    }

    pub(crate) fn slab_mut<T: Real>(&mut self) -> &mut [T] {
        self.slab.slice_mut()
    }

    /// Sets everything to zero.
    pub fn clear(&mut self) {
        let device = self.slab.device().clone();
        on_device!(device, T => self.slab.slice_mut::<T>().fill(T::ZERO), _gpu => self.slab.clear_on_gpu());
    }

    /// One writable window per parameter.
    pub(crate) fn split(&mut self) -> Vec<Option<Slot<'_>>> {
        fn cut<'a, T>(
            mut rest: &'a mut [T],
            specs: &[Spec],
            wrap: fn(&'a mut [T]) -> Slot<'a>,
        ) -> Vec<Option<Slot<'a>>> {
            let mut at = 0;
            let mut windows = Vec::with_capacity(specs.len());
            for range in specs.iter().map(Spec::range) {
                let (window, tail) = std::mem::take(&mut rest)[range.start - at..].split_at_mut(range.len());
                (at, rest) = (range.end, tail);
                windows.push(Some(wrap(window)));
            }
            windows
        }
        if self.slab.device().gpu().is_some() {
            let window = |s: &Spec| Some(Slot::window_gpu(self.slab.window(s.at, &s.shape)));
            return self.specs.iter().map(window).collect();
        }
        match self.slab.device().dtype() {
            DType::F32 => cut(self.slab.slice_mut(), &self.specs, Slot::window_f32),
            DType::F64 => cut(self.slab.slice_mut(), &self.specs, Slot::window_f64),
        }
    }
}
