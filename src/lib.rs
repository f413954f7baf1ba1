//! Drawing out of Distribution (DooD): a model that learns, without labels, to draw.
#![warn(missing_docs)]

pub mod checkpoint;
mod cpu;
pub mod data;
mod device;
pub mod error;
pub mod figures;
pub mod files;
pub mod gradcheck;
mod matmul;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod ops;
pub mod optim;
mod params;
pub mod profile;
mod real;
pub mod reconstruct;
pub mod rng;
mod tape;
mod tensor;
pub mod train;

pub use device::{DType, Device};
pub use error::{Error, Result};
pub use params::{Grads, ParamId, Params, ParamsBuilder, Spec};
pub use tape::{NodeGrads, Slot, Tape, Var};
pub use tensor::Tensor;
