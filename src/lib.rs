//! Drawing out of Distribution (DooD): a model that learns, without labels, to draw.
#![warn(missing_docs)]

pub mod data;
pub mod error;
pub mod files;

pub use error::{Error, Result};
