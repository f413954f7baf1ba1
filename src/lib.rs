//! Drawing out of Distribution (DooD): a model that learns, without labels, to draw.
//!
//! It sees an image, decides stroke by stroke where the pen goes next and when to stop, and renders what it drew. The renderer is
//! differentiable, so everything is learned from images alone. The model is that of Liang, Tenenbaum, Le and Siddharth,
//! "Drawing out of Distribution with Neuro-Symbolic Generative Models" (NeurIPS 2022). All of it is here, down to the gradients:
//! tensors, automatic differentiation, kernels, networks, renderer, training.
//!
//! # Ten lines
//!
//! A layer, its loss, the gradient, and one step of Adam:
//!
//! ```
//! use dood::{Device, Grads, ParamsBuilder, Tape, Tensor, ops::Activation, optim::Adam};
//!
//! let device = Device::cpu();
//! let mut builder = ParamsBuilder::new();
//! let (w, b) = (builder.add("w", &[1, 2], |i| [0.5, -0.25][i]), builder.add("b", &[1], |_| 0.0));
//! let mut params = builder.build(&device);
//! let mut grads = Grads::zeros(&params);
//!
//! let tape = Tape::new(&params);
//! let x = tape.constant(Tensor::from_f64(&device, &[1, 2], &[1.0, 2.0]));
//! let error = x.linear(tape.param(w), tape.param(b), Activation::Tanh) + -1.0;
//! tape.backward((error * error).sum(), &mut grads);
//! assert_eq!(grads.get(w).to_f64(), [-2.0, -4.0]);
//!
//! drop(tape);
//! Adam::new(&params, &[0.1]).step(&mut params, &grads);
//! ```
//!
//! The [`guide`] goes on from here: ten steps from a tensor to a trained network. [`extend`] is for ops and kernels of your own.
//!
//! # Reading the source
//!
//! "Section N" in comments is a section of `docs/model.md`, the exact specification of the model.
//!
//! In this order:
//!
//! 1. [`Tensor`] (`tensor.rs`): contiguous numbers with a shape, on a [`Device`].
//! 2. [`Tape`] (`tape.rs`): one training step as a list of op applications. A [`Var`] is a value on it; [`Tape::backward`] walks the
//!    list in reverse.
//! 3. [`ops`]: one file per differentiable function, its formula at the top, forward and backward side by side. Begin with
//!    `ops/linear.rs`; the renderer is `ops/render_stroke.rs`. [`gradcheck`](mod@gradcheck) is what holds them to account.
//! 4. [`Params`] (`params.rs`): all parameters in one block of memory, addressed by [`ParamId`]; [`Grads`] is laid out alike.
//! 5. [`optim`]: Adam and others over that block. [`rng`]: random numbers that depend on their key and place only.
//! 6. [`nn`]: linear layers, convolutions, MLPs, a GRU, as parameter ids and a forward function.
//! 7. [`model`]: the paper. [`model::Config`] has all sizes, [`model::Model::recognise`] draws an image stroke by stroke,
//!    [`model::objective`] is what training minimises.
//! 8. [`data`]: where images come from.
//! 9. [`train`]: one update after the other, and around it [`checkpoint`], [`metrics`], [`figures`]; [`measure`](mod@measure) says how
//!    good a model is, [`refine`](mod@refine) looks at an image for longer, and [`eval`] has what a model can do.
//!
//! # Rooms
//!
//! A file uses only modules that stand before its own; `tests/rooms.rs` holds this table to it.
//!
//! ```text
//! ground   error observer files dtype real kernels rng cpu matmul
//! card     ranks gpu
//! engine   device tensor slot op profile replay params tape
//! parts    ops gradcheck extend optim ascent nn
//! paper    model
//! work     data checkpoint figures metrics refine measure eval train
//! ```
//!
//! # Errors
//!
//! Mistakes of users, files and devices come back as [`Error`], one sentence each. Shapes that do not fit are mistakes of the
//! program: they panic with the op's name and the shapes.
#![warn(missing_docs)]

mod ascent;
pub mod checkpoint;
mod cpu;
pub mod data;
mod device;
mod dtype;
pub mod error;
pub mod eval;
pub mod extend;
pub mod figures;
pub mod files;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "gpu/absent.rs"]
pub mod gpu;
pub mod gradcheck;
pub mod kernels;
mod matmul;
pub mod measure;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod observer;
mod op;
pub mod ops;
pub mod optim;
mod params;
pub mod profile;
pub mod ranks;
mod real;
pub mod refine;
mod replay;
pub mod rng;
mod slot;
mod tape;
mod tensor;
pub mod train;

#[cfg(all(test, unix, feature = "cuda"))]
#[path = "../tests/common/stand_in.rs"]
mod stand_in;

pub use device::{Device, Place};
pub use dtype::{DType, MathMode};
pub use error::{Error, Result};
pub use observer::Observer;
pub use params::{Grads, ParamId, Params, ParamsBuilder, Spec};
pub use slot::Slot;
pub use tape::{NodeGrads, Tape, Var};
pub use tensor::Tensor;

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

/// The examples of the README are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
