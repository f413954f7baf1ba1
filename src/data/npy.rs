//! Google's QuickDraw bitmaps: one `.npy` file per category, `[count, 784]` bytes, one 28x28 drawing per row.

use crate::{Error, Result};
use std::io::{Read, Seek, SeekFrom};

/// Height and width of a bitmap.
pub const SIDE: usize = 28;
const BYTES: usize = SIDE * SIDE;

/// An open `.npy` file of bitmaps, from which single rows are read: the files are far larger than what is used of them.
pub struct Bitmaps<R> {
    reader: R,
    name: String,
    start: u64,
    count: usize,
}

impl<R: Read + Seek> Bitmaps<R> {
    /// Reads the header (versions 1 to 3 of the format) and compares it with the length of the file.
    ///
    /// Needs type `u1`, C order and shape `[count, 784]` or `[count, 28, 28]` with at least one drawing. `name` is what errors
    /// call the file.
    pub fn open(mut reader: R, name: &str) -> Result<Self> {
        let bad = |text: String| Error::Data(format!("{name}: {text}"));
        let cut_off = |_| bad("the file is cut off: fetch it again".into());
        let mut magic = [0; 8];
        reader.read_exact(&mut magic).map_err(cut_off)?;
        if &magic[..6] != b"\x93NUMPY" || !(1..=3).contains(&magic[6]) {
            return Err(bad("not an .npy file of version 1 to 3".into()));
        }
        let mut length = [0; 4];
        reader.read_exact(&mut length[..if magic[6] == 1 { 2 } else { 4 }]).map_err(cut_off)?;
        let length = u32::from_le_bytes(length);
        if length > 1 << 16 {
            return Err(bad(format!("its header claims {length} bytes; a file of bitmaps has about a hundred")));
        }
        let mut header = vec![0; length as usize];
        reader.read_exact(&mut header).map_err(cut_off)?;
        let count = count_in(&String::from_utf8_lossy(&header)).map_err(bad)?;

        let unseekable = |e| bad(format!("cannot be read: {e}"));
        let start = reader.stream_position().map_err(unseekable)?;
        let held = reader.seek(SeekFrom::End(0)).map_err(unseekable)? - start;
        if (count as u64).checked_mul(BYTES as u64) != Some(held) {
            return Err(bad(format!(
                "the header promises {count} drawings of {BYTES} bytes, but {held} bytes follow: fetch the file again"
            )));
        }
        Ok(Bitmaps { reader, name: name.into(), start, count })
    }

    /// The number of drawings, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Appends drawing `i` to `pixels`: 28x28, 0 to 255, ink bright.
    pub fn read(&mut self, i: usize, pixels: &mut Vec<u8>) -> Result<()> {
        assert!(i < self.count, "bitmap {i} of {}", self.count);
        let mut row = [0; BYTES];
        let at = self.start + (i * BYTES) as u64;
        let read = self.reader.seek(SeekFrom::Start(at)).and_then(|_| self.reader.read_exact(&mut row));
        read.map_err(|e| Error::Data(format!("{}: drawing {i} cannot be read: {e}", self.name)))?;
        pixels.extend_from_slice(&row);
        Ok(())
    }
}

/// The number of drawings that a header such as `{'descr': '|u1', 'fortran_order': False, 'shape': (9, 784), }` describes.
fn count_in(header: &str) -> Result<usize, String> {
    let entry = |key: &str| {
        let after = header.split_once(&format!("'{key}'")).and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
        after.map(str::trim_start).ok_or_else(|| format!("its header has no '{key}'"))
    };
    let kind = entry("descr")?.trim_start_matches('\'').split('\'').next().unwrap_or_default();
    if kind.trim_start_matches(['|', '<', '>', '=']) != "u1" {
        return Err(format!("holds elements of type '{kind}', but bitmaps are bytes ('|u1')"));
    }
    if !entry("fortran_order")?.starts_with("False") {
        return Err("is stored column by column (fortran_order), but bitmaps are stored row by row".into());
    }
    let shape = entry("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    let shape = shape.ok_or("its header has no tuple as 'shape'")?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse::<usize>);
    match sizes.collect::<Result<Vec<_>, _>>().as_deref() {
        Ok([0, ..]) => Err("holds no drawings".into()),
        Ok([count, BYTES] | [count, SIDE, SIDE]) => Ok(*count),
        _ => Err(format!("has the shape ({shape}), but bitmaps have (count, {BYTES})")),
    }
}
