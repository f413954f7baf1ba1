//! Where a backward pass puts gradients.

use crate::{
    Device, Tensor,
    device::on_device,
    gpu::{Arg, Launch, Span, args},
    real::Real,
};
use std::any::Any;

/// Where a gradient goes. An op adds its contribution: `slot += g`.
pub struct Slot<'a> {
    memory: Memory<'a>,
    /// Nothing has been written yet: the first writer overwrites, so that no sum is zero-filled for nothing.
    fresh: bool,
    /// Contributions that are known, but not yet formed.
    late: Option<Box<dyn Late>>,
}

/// Contributions to a gradient that cost less when they are formed together: once enough of them are known, or all.
pub(crate) trait Late: Any {
    /// Adds all that are left to the slot.
    fn form(self: Box<Self>, slot: &mut Slot);
}

enum Memory<'a> {
    Owned(Tensor),
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
}

impl<'a> Slot<'a> {
    pub(crate) fn fresh(device: &Device, shape: &[usize]) -> Self {
        Slot { memory: Memory::Owned(Tensor::empty(device, shape)), fresh: true, late: None }
    }

    pub(crate) fn owned(value: Tensor) -> Self {
        Slot { memory: Memory::Owned(value), fresh: false, late: None }
    }

    pub(crate) fn window_f32(memory: &'a mut [f32]) -> Self {
        Slot { memory: Memory::F32(memory), fresh: false, late: None }
    }

    pub(crate) fn window_f64(memory: &'a mut [f64]) -> Self {
        Slot { memory: Memory::F64(memory), fresh: false, late: None }
    }

    /// A part of a slab on the GPU.
    pub(crate) fn window_gpu(window: Tensor) -> Self {
        Slot { memory: Memory::Owned(window), fresh: false, late: None }
    }

    /// Where a kernel shall write, and whether it must add to what is there.
    pub(crate) fn device(&mut self) -> (Span, bool) {
        let add = !std::mem::replace(&mut self.fresh, false);
        match &self.memory {
            Memory::Owned(value) => (value.span(), add),
            _ => panic!("the gradient of a tensor on the CPU was given to a kernel"),
        }
    }

    /// As for [`grad`].
    pub(crate) fn arg(&mut self) -> [Arg; 2] {
        let (span, add) = self.device();
        [Arg::Out(span), Arg::Int(add.into())]
    }

    /// The contributions of kind `L` that are not yet formed, for the caller to add to.
    pub(crate) fn late<L: Late + Default>(&mut self) -> &mut L {
        let late: &mut dyn Any = &mut **self.late.get_or_insert_with(|| Box::new(L::default()));
        late.downcast_mut().expect("late contributions of one kind")
    }

    pub(crate) fn settle(&mut self) {
        if let Some(late) = self.late.take() {
            late.form(self);
        }
    }

    pub(crate) fn into_tensor(mut self) -> Tensor {
        self.settle();
        assert!(!self.fresh, "an op's backward left the gradient of an input unwritten");
        match &mut self.memory {
            Memory::Owned(value) => value.clone(),
            _ => panic!("the gradient of a parameter was asked for as that of an activation"),
        }
    }

    pub(crate) fn plus(mut self, other: Slot) -> Self {
        self.add_tensor(&other.into_tensor());
        self
    }

    /// Adds `gradient`, which has the shape of the input.
    #[track_caller]
    pub fn add_tensor(&mut self, gradient: &Tensor) {
        on_device!(gradient.device(), T => {
            let sum = self.add::<T>();
            assert_eq!(sum.len(), gradient.len(), "a gradient of another size than the input");
            sum.iter_mut().zip(gradient.slice::<T>()).for_each(|(a, &b)| *a += b)
        }, gpu => {
            let (sum, add) = self.device();
            let n = gradient.len();
            let arguments = args![gradient, Arg::Out(sum), Arg::Int(add.into()), n];
            gpu.launch("memory", "accumulate", Launch::elements(n), arguments);
        });
    }

    /// The sum so far, to be added to.
    pub fn add<T: Real>(&mut self) -> &mut [T] {
        let (values, fresh) = self.write();
        if fresh {
            values.fill(T::ZERO);
        }
        values
    }

    /// The memory, and whether its contents are meaningless: then the caller must write every element, otherwise add to each.
    pub fn write<T: Real>(&mut self) -> (&mut [T], bool) {
        let fresh = std::mem::replace(&mut self.fresh, false);
        let values = match &mut self.memory {
            Memory::Owned(value) => value.slice_mut(),
            Memory::F32(window) => bytemuck::cast_slice_mut(window),
            Memory::F64(window) => bytemuck::cast_slice_mut(window),
        };
        (values, fresh)
    }
}

/// The two arguments of a gradient: where it goes (null if nobody wants it), and whether to add to what is there.
///
/// To be asked for once for each launch that writes: it takes note that the slot has been written.
pub fn grad(slot: &mut Option<Slot>) -> [Arg; 2] {
    slot.as_mut().map_or([Arg::Out(Span::NONE), Arg::Int(0)], Slot::arg)
}
