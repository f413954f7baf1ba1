//! Google's QuickDraw bitmaps: one `.npy` file per category, `[count, 784]` bytes, one 28x28 drawing per row.
//!
//! Other NumPy arrays of that shape are read as well: integers from 0 to 255, booleans, and floating-point numbers from 0 to 1,
//! in either byte order, row by row or column by column.

use super::sniff;
use crate::{Error, Result};
use std::io::{Read, Seek, SeekFrom};

/// Height and width of a bitmap.
pub const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;

/// An open `.npy` file of bitmaps, from which single rows are read: the files are far larger than what is used of them.
pub struct Bitmaps<R> {
    reader: R,
    name: String,
    start: u64,
    header: Header,
    /// All elements, where a drawing is scattered over the whole file.
    scattered: Vec<u8>,
}

/// What the head of a file says about what follows.
struct Header {
    count: usize,
    kind: Kind,
    /// Bytes of an element, lowest first where `little`.
    bytes: usize,
    little: bool,
    /// Elements from one drawing, row of pixels and pixel to the next.
    strides: [usize; 3],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bool,
    Unsigned,
    Signed,
    Float,
}

impl<R: Read + Seek> Bitmaps<R> {
    /// Reads the header (versions 1 to 3 of the format) and compares it with the length of the file.
    ///
    /// Needs the shape `[count, 784]` or `[count, 28, 28]`, or these with further dimensions of size 1, and at least one drawing.
    /// `name` is what errors call the file.
    pub fn open(mut reader: R, name: &str) -> Result<Self> {
        let bad = |text: String| Error::Data(format!("{name}: {text}"));
        let cut_off = |_| bad("the file is cut off".into());
        let unseekable = |e| bad(format!("cannot be read: {e}"));
        let mut magic = Vec::new();
        reader.by_ref().take(512).read_to_end(&mut magic).map_err(unseekable)?;
        if !magic.starts_with(b"\x93NUMPY") {
            let what = sniff(&magic).map_or(String::new(), |what| format!(" but {what}"));
            return Err(bad(format!("not an .npy file{what}")));
        }
        let version = magic.get(6).copied().unwrap_or(0);
        if magic.len() >= 8 && !(1..=3).contains(&version) {
            return Err(bad(format!("not an .npy file of version 1 to 3 but of version {version}")));
        }
        reader.seek(SeekFrom::Start(8)).map_err(unseekable)?;
        let mut length = [0; 4];
        reader.read_exact(&mut length[..if version == 1 { 2 } else { 4 }]).map_err(cut_off)?;
        let length = u32::from_le_bytes(length);
        if length > 1 << 16 {
            return Err(bad(format!("its header claims {length} bytes; a file of bitmaps has about a hundred")));
        }
        let mut header = vec![0; length as usize];
        reader.read_exact(&mut header).map_err(cut_off)?;
        let header = Header::parse(&String::from_utf8_lossy(&header)).map_err(bad)?;

        let start = reader.stream_position().map_err(unseekable)?;
        let held = reader.seek(SeekFrom::End(0)).map_err(unseekable)? - start;
        let (count, bytes) = (header.count as u64, (PIXELS * header.bytes) as u64);
        // NumPy passes over what follows the array.
        if count.checked_mul(bytes).is_none_or(|promised| promised > held) {
            return Err(bad(format!(
                "the file is cut off: its header promises {count} drawings of {bytes} bytes, but {held} bytes follow"
            )));
        }
        let mut scattered = Vec::new();
        if header.strides[2] != 1 {
            reader.seek(SeekFrom::Start(start)).map_err(unseekable)?;
            reader.by_ref().take(count * bytes).read_to_end(&mut scattered).map_err(unseekable)?;
        }
        Ok(Bitmaps { reader, name: name.into(), start, header, scattered })
    }

    /// The number of drawings, at least 1.
    pub fn count(&self) -> usize {
        self.header.count
    }

    /// Appends drawing `i` to `pixels`: 28x28, 0 to 255, ink bright.
    pub fn read(&mut self, i: usize, pixels: &mut Vec<u8>) -> Result<()> {
        let Header { count, kind, bytes, little, strides: [drawing, row, column] } = self.header;
        assert!(i < count, "bitmap {i} of {count}");
        let bad = |text: String| Error::Data(format!("{}: drawing {i} (from 0) {text}", self.name));
        let mut elements = vec![0; PIXELS * bytes];
        if self.scattered.is_empty() {
            let at = self.start + (i * drawing * bytes) as u64;
            let read = self.reader.seek(SeekFrom::Start(at)).and_then(|_| self.reader.read_exact(&mut elements));
            read.map_err(|e| bad(format!("cannot be read: {e}")))?;
        } else {
            for (k, element) in elements.chunks_exact_mut(bytes).enumerate() {
                let at = bytes * (i * drawing + k / SIDE * row + k % SIDE * column);
                element.copy_from_slice(&self.scattered[at..at + bytes]);
            }
        }
        if bytes == 1 && kind == Kind::Unsigned {
            pixels.extend(elements);
            return Ok(());
        }
        for element in elements.chunks_exact_mut(bytes) {
            if little {
                element.reverse();
            }
            let value = value(kind, element);
            let top = if matches!(kind, Kind::Float | Kind::Bool) { 1.0 } else { 255.0 };
            // Not `value < 0 || value > top`: NaN must fail too.
            if !(0.0..=top).contains(&value) {
                return Err(bad(format!("holds the value {value}, which is not in 0 to {top}")));
            }
            pixels.push((value * (255.0 / top)).round() as u8);
        }
        Ok(())
    }
}

/// The number that these bytes are, the highest first.
fn value(kind: Kind, bytes: &[u8]) -> f64 {
    let bits = bytes.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
    match (kind, bytes.len()) {
        (Kind::Float, 2) => half(bits as u16),
        (Kind::Float, 4) => f32::from_bits(bits as u32).into(),
        (Kind::Float, _) => f64::from_bits(bits),
        (Kind::Signed, n) => ((bits << (64 - 8 * n)) as i64 >> (64 - 8 * n)) as f64,
        (Kind::Bool | Kind::Unsigned, _) => bits as f64,
    }
}

/// A number of 16 bits: a sign, five bits of exponent, ten of fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

impl Header {
    /// Reads a header such as `{'descr': '|u1', 'fortran_order': False, 'shape': (9, 784), }`.
    fn parse(header: &str) -> Result<Self, String> {
        let entry = |key: &str| {
            let after =
                ['\'', '"'].iter().find_map(|quote| Some(header.split_once(&format!("{quote}{key}{quote}"))?.1));
            let after = after.and_then(|rest| rest.trim_start().strip_prefix(':'));
            after.map(str::trim_start).ok_or_else(|| format!("its header has no '{key}'"))
        };
        let descr = entry("descr")?.trim_start_matches(['\'', '"']).split(['\'', '"']).next().unwrap_or_default();
        let (order, name) = descr.split_at(descr.find(|c: char| !"|<>=".contains(c)).unwrap_or(descr.len()));
        let (kind, bytes) = match name {
            "b1" | "?" => (Kind::Bool, 1),
            "u1" | "B" => (Kind::Unsigned, 1),
            "u2" => (Kind::Unsigned, 2),
            "u4" => (Kind::Unsigned, 4),
            "u8" => (Kind::Unsigned, 8),
            "i1" | "b" => (Kind::Signed, 1),
            "i2" => (Kind::Signed, 2),
            "i4" => (Kind::Signed, 4),
            "i8" => (Kind::Signed, 8),
            "f2" => (Kind::Float, 2),
            "f4" => (Kind::Float, 4),
            "f8" => (Kind::Float, 8),
            _ => {
                return Err(format!(
                    "holds elements of type '{descr}', but bitmaps are numbers, as a rule bytes ('|u1')"
                ));
            }
        };
        let by_columns = entry("fortran_order")?.starts_with("True");
        let shape = entry("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inside, _)| inside);
        let shape = shape.ok_or("its header has no tuple as 'shape'")?;
        // Python 2 wrote long integers as `5000L`.
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        let sizes: Result<Vec<usize>, _> = sizes.map(|size| size.trim_end_matches('L').parse()).collect();
        let mut sizes = sizes.map_err(|_| format!("has the shape ({shape}), which is not a tuple of numbers"))?;
        // As other programs write one channel: (count, 28, 28, 1) or (count, 1, 28, 28).
        while sizes.len() > 2
            && let Some(one) = sizes[1..].iter().position(|&size| size == 1)
        {
            sizes.remove(1 + one);
        }
        let count = match sizes[..] {
            [0, ..] => return Err("holds no drawings".into()),
            [count, PIXELS] | [count, SIDE, SIDE] => count,
            _ => return Err(format!("has the shape ({shape}), but bitmaps have (count, {PIXELS})")),
        };
        let strides = match (by_columns, sizes.len()) {
            (false, _) => [PIXELS, SIDE, 1],
            (true, 2) => [1, SIDE.saturating_mul(count), count],
            (true, _) => [1, count, SIDE.saturating_mul(count)],
        };
        let little = if order.ends_with('>') { false } else { order.ends_with('<') || cfg!(target_endian = "little") };
        Ok(Header { count, kind, bytes, little, strides })
    }
}
