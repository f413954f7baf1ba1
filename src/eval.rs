//! What a trained model can do: the tasks of the paper (section 11 of the model), from finished drawings that have left their tape.
//!
//! An [`Artist`] is a model with its parameters. Its drawings are [`Drawings`](crate::model::Drawings) on their device, [`Drawn`] with
//! their pictures on the host, and a [`DrawingFile`] on disk.

mod artist;
pub mod classifier;
pub mod cluster;
pub mod drawing;
mod drawn;
pub mod frechet;
pub mod gallery;
pub mod ink;
pub mod kept;
pub mod latents;
pub mod one_shot;
mod paint;
pub mod published;
pub mod reconstruction;
pub mod report;
pub mod token;
pub mod transfer;

pub use artist::{Artist, Beginning, MedianPen};
pub use drawing::{Drawing, DrawingFile, Stroke};
pub use drawn::Drawn;
pub use ink::Ink;
pub use paint::{Brush, paint};
pub use reconstruction::{Best, Reconstruction, reconstruct};
pub use token::Token;
