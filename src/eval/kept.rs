//! Numbers that took long to find, in a file, so that work which was stopped goes on with them.

use super::cluster::Points;
use crate::{
    Error, Result,
    checkpoint::damage,
    data::sniff,
    files::{self, quoted, write_atomically},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::DeserializeOwned;
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

/// A value from JSON, in front of which an editor may have put a mark of byte order; else what is wrong with it, as "it is …".
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(text).map_err(|e| match sniff(bytes) {
        Some(what) if e.line() == 1 && e.column() <= 1 && what != "a text" => format!("it is {what}"),
        _ if e.is_eof() => format!("it is cut off ({e})"),
        _ if e.is_syntax() => format!("it is not JSON ({e})"),
        _ => format!("it is damaged, or the file of something else ({e})"),
    })
}

/// Reads the parts that [`write()`] wrote, each of the dimension that it has.
///
/// # Errors
/// [`Error::Usage`] if the file holds something else, or numbers that depend on something else.
pub fn read(path: &Path, about: &str, parts: &mut [(&str, &mut Points)]) -> Result<()> {
    let bytes = files::read(path)?;
    let wrong = |why: &str| Error::Usage(format!("{} cannot be gone on with: {why}", quoted(path)));
    let damaged = || wrong("it is damaged, or the file of something else; leave --resume out to draw anew");
    let header = SafeTensors::read_metadata(&bytes).map_err(|e| damage(&bytes, &e));
    let (_, header) = header.map_err(|what| wrong(&format!("{what}; leave --resume out to draw anew")))?;
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
