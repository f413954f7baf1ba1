//! Ops and kernels of your own.
//!
//! An op is a type that implements [`Op`]: its name, its result, and its gradients. `Tape::apply` records it, like those of the library.
//! [`on_device!`] says what either kind of device does. The CPU arm sees slices of `T`, which is `f32` or `f64`; the GPU arm launches
//! kernels, which are CUDA C++ in a string:
//!
//! ```
//! use dood::{Device, Slot, Tape, Tensor, Var, args, on_device};
//! use dood::extend::{Arg, Kernels, Launch, Op, grad};
//! use dood::gradcheck::{device_error, gradcheck};
//!
//! /// y = x³.
//! struct Cube;
//!
//! // SAFETY: they touch elements 0 to n of tensors that have n.
//! const KERNELS: Kernels = unsafe { Kernels::new("cube", "
//!     KERNEL cube_fwd(const REAL* x, REAL* y, int n) {
//!         for (long long i = first_element(); i < n; i += element_stride()) y[i] = x[i] * x[i] * x[i];
//!     }
//!     KERNEL cube_bwd(const REAL* x, const REAL* dy, REAL* dx, int add, int n) {
//!         for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, 3 * x[i] * x[i] * dy[i], add);
//!     }
//! ") };
//!
//! impl Op for Cube {
//!     fn name(&self) -> &'static str {
//!         "cube"
//!     }
//!
//!     fn forward(&self, device: &Device, x: &[Tensor]) -> Vec<Tensor> {
//!         let mut y = Tensor::empty(device, x[0].shape());
//!         on_device!(device, T => {
//!             y.slice_mut::<T>().iter_mut().zip(x[0].slice::<T>()).for_each(|(y, x)| *y = x * x * x);
//!         }, gpu => {
//!             gpu.launch_from(&KERNELS, "cube_fwd", Launch::elements(y.len()), args![&x[0], y.out(), y.len()]);
//!         });
//!         vec![y]
//!     }
//!
//!     fn backward(&self, device: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
//!         on_device!(device, T => {
//!             let Some(slot) = &mut dx[0] else { return };
//!             let terms = x[0].slice::<T>().iter().zip(dy.slice::<T>());
//!             slot.add::<T>().iter_mut().zip(terms).for_each(|(dx, (x, dy))| *dx += 3.0 * x * x * dy);
//!         }, gpu => {
//!             let [out, add] = grad(&mut dx[0]);
//!             gpu.launch_from(&KERNELS, "cube_bwd", Launch::elements(dy.len()), args![&x[0], dy, out, add, dy.len()]);
//!         });
//!     }
//! }
//!
//! fn cube<'t>(x: Var<'t>) -> Var<'t> {
//!     x.tape().apply(Cube, &[x])
//! }
//!
//! // The gradients of the CPU against finite differences, then any device against the CPU.
//! assert!(gradcheck(&[&[3, 4]], |_, x| cube(x[0])) < 1e-8);
//! assert!(device_error(&Device::cpu(), &[&[3, 4]], |_, x| cube(x[0])).unwrap() < 1e-5);
//! ```
//!
//! Four things to know:
//!
//! - **Gradients are added.** An input may already have one: `slot.add()` is the sum so far (zeros at first); a kernel gets a pointer, null
//!   if nobody wants it, and whether it has to add, which [`grad`] gives and `put` obeys.
//! - **A result is not written again.** Whatever the backward wants to see is returned behind it, as further tensors.
//! - **Shapes are checked first**, in `forward`, with a sentence that has all of them: it names the line of the caller, if the function that
//!   calls `apply` is `#[track_caller]`.
//! - **Arguments are held against the kernel's text** at its first launch. A kernel sees what `kernels/common.cuh` has: `REAL` is the
//!   device's number type, sums over warps and blocks have a fixed order, random numbers are those of the host.
//!
//! `examples/own_op.rs` is a whole program; `tests/own_op.rs` runs its kernels where there is no GPU, and shows that one that is wrong is
//! found.

pub use crate::{
    args,
    gpu::{Arg, Gpu, Launch, Span},
    kernels::Kernels,
    on_device,
    op::{Cost, Op},
    real::Real,
    slot::grad,
};
