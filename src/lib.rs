//! Drawing out of Distribution (DooD): a model that learns, without labels, to draw.
#![warn(missing_docs)]

pub mod error;
pub mod figures;
pub mod files;
pub mod metrics;

pub use error::{Error, Result};
