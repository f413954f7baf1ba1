//! Numbers that took long to find, in a file, so that work which was stopped goes on with them.

use super::cluster::Points;
use crate::{
    Error, Result,
    files::{self, quoted, write_atomically},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::HashMap, path::Path};

/// Under it stands what the numbers depend on.
const ABOUT: &str = "about";

/// Writes parts by their names, in single precision, with what they depend on.
///
/// # Errors
/// A file that cannot be written.
pub fn write(path: &Path, about: &str, parts: &[(&str, &Points)]) -> Result<()> {
    let bytes = |points: &Points| points.values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<u8>>();
    let parts: Vec<_> =
        parts.iter().map(|(name, points)| (*name, vec![points.len(), points.dim], bytes(points))).collect();
    let views = parts.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    let about = HashMap::from([(ABOUT.to_owned(), about.to_owned())]);
    let text = safetensors::serialize(views, Some(about)).expect("plain arrays can be written");
    write_atomically(path, |out| out.write_all(&text))
}

/// Reads the parts that [`write()`] wrote, each of the dimension that it has.
///
/// # Errors
/// [`Error::Usage`] if the file holds something else, or numbers that depend on something else.
pub fn read(path: &Path, about: &str, parts: &mut [(&str, &mut Points)]) -> Result<()> {
    let bytes = files::read(path)?;
    let wrong = |why: &str| Error::Usage(format!("{} cannot be gone on with: {why}", quoted(path)));
    let damaged = || wrong("it is damaged, or the file of something else");
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|_| damaged())?;
    if header.metadata().as_ref().and_then(|known| known.get(ABOUT)).is_none_or(|known| known != about) {
        return Err(wrong("it is of another model, other images or another seed; leave --resume out to draw anew"));
    }
    let arrays = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    for (name, points) in parts {
        let array = arrays.tensor(name).map_err(|_| damaged())?;
        if array.dtype() != Dtype::F32 || array.shape().get(1) != Some(&points.dim) {
            return Err(damaged());
        }
        points.values = array.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect();
    }
    Ok(())
}
