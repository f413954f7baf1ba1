//! IDX, the format of MNIST and its relatives: two zero bytes, a type, the number of dimensions, big-endian sizes, data.
//!
//! A file may be gzipped; that is seen from its first bytes, not from its name.

use super::{Grey, Images, MAX_SIDE, Reading, names_in};
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::{io::Read, path::Path};

/// Parses an IDX file of images, raw or gzipped; `name` is what errors call it.
///
/// Integers are grey values from 0 to 255, floating-point numbers brightness from 0 to 1 (rounded to 8 bits).
/// Memory is taken only as the data arrives, so a false header cannot ask for more than the file really holds.
pub fn images(bytes: &[u8], name: &str) -> Result<Grey> {
    let array = parse(bytes, name, 3, "images")?;
    let (height, width) = (array.sizes[1], array.sizes[2]);
    let top = if array.kind.is_float() { 1.0 } else { 255.0 };
    let grey = |(i, value): (usize, f64)| {
        // Not `value < 0 || value > top`: NaN must fail too.
        if (0.0..=top).contains(&value) {
            return Ok((value * (255.0 / top)).round() as u8);
        }
        let image = i / (height * width);
        Err(Error::Data(format!("{name}: image {image} (from 0) holds the value {value}, which is not in 0 to {top}")))
    };
    let pixels = match array.kind {
        Kind::U8 => array.data,
        _ => array.values().enumerate().map(grey).collect::<Result<_>>()?,
    };
    Ok(Grey { height, width, pixels })
}

/// Parses an IDX file of labels, raw or gzipped; `name` is what errors call it. Labels are integers from 0 to 65,535.
pub fn labels(bytes: &[u8], name: &str) -> Result<Vec<u16>> {
    let array = parse(bytes, name, 1, "labels")?;
    if array.kind.is_float() {
        return Err(Error::Data(format!("{name}: labels must be integers, but the file holds floating-point numbers")));
    }
    let label = |(i, value): (usize, f64)| {
        let fits = (0.0..=65535.0).contains(&value);
        fits.then_some(value as u16)
            .ok_or_else(|| Error::Data(format!("{name}: label {i} (from 0) is {value}, which is not in 0 to 65535")))
    };
    array.values().enumerate().map(label).collect()
}

/// The element types of IDX.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    U8,
    I8,
    I16,
    I32,
    F32,
    F64,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x08 => Kind::U8,
            0x09 => Kind::I8,
            0x0B => Kind::I16,
            0x0C => Kind::I32,
            0x0D => Kind::F32,
            0x0E => Kind::F64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::I16 => 2,
            Kind::I32 | Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Kind::F32 | Kind::F64)
    }

    fn value(self, b: &[u8]) -> f64 {
        match self {
            Kind::U8 => b[0].into(),
            Kind::I8 => (b[0] as i8).into(),
            Kind::I16 => i16::from_be_bytes([b[0], b[1]]).into(),
            Kind::I32 => i32::from_be_bytes([b[0], b[1], b[2], b[3]]).into(),
            Kind::F32 => f32::from_be_bytes([b[0], b[1], b[2], b[3]]).into(),
            Kind::F64 => f64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        }
    }
}

struct Array {
    kind: Kind,
    sizes: Vec<usize>,
    data: Vec<u8>,
}

impl Array {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.data.chunks_exact(self.kind.bytes()).map(|bytes| self.kind.value(bytes))
    }
}

/// The most that deflate can expand its input.
const DEFLATE_RATIO: u64 = 1032;

fn parse(bytes: &[u8], name: &str, rank: usize, what: &str) -> Result<Array> {
    let bad = |text: String| Error::Data(format!("{name}: {text}"));
    let packed = is_gzip(bytes);
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => bad("the file is cut off: fetch it again".into()),
        _ => bad(format!("cannot be unpacked ({e}): the file is damaged, fetch it again")),
    };
    let mut reader: Box<dyn Read> = if packed { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(unreadable)?;
    let kind = Kind::from_code(magic[2]).filter(|_| magic[..2] == [0, 0]).ok_or_else(|| {
        bad(format!("not an IDX file: it begins with the bytes {magic:02x?} where 00 00 TYPE DIMENSIONS is expected"))
    })?;
    if usize::from(magic[3]) != rank {
        return Err(bad(format!("has {} dimensions, but a file of {what} has {rank}", magic[3])));
    }
    let mut sizes = vec![0; rank];
    for size in &mut sizes {
        let mut field = [0; 4];
        reader.read_exact(&mut field).map_err(unreadable)?;
        *size = u32::from_be_bytes(field) as usize;
    }
    if sizes[0] == 0 {
        return Err(bad(format!("holds no {what}")));
    }
    if let Some(side) = sizes[1..].iter().find(|side| !(1..=MAX_SIDE).contains(*side)) {
        return Err(bad(format!("images with {side} rows or columns cannot be used: 1 to {MAX_SIDE} are possible")));
    }
    // At most 2^32 * 2^11 * 2^11 * 2^3: fits.
    let expected = sizes.iter().map(|&size| size as u64).product::<u64>() * kind.bytes() as u64;
    let possible = bytes.len() as u64 * if packed { DEFLATE_RATIO } else { 1 };
    if expected > possible {
        return Err(bad(format!(
            "the header promises {expected} bytes of {what}, more than the file can hold: fetch it again"
        )));
    }
    let mut data = Vec::new();
    // One byte more than expected shows that a file goes on; reaching the end also makes gzip check its checksum.
    reader.take(expected + 1).read_to_end(&mut data).map_err(unreadable)?;
    if data.len() as u64 != expected {
        let held = if data.len() as u64 > expected { "more".into() } else { format!("only {}", data.len()) };
        return Err(bad(format!("the header promises {expected} bytes of {what}, but the file holds {held}")));
    }
    Ok(Array { kind, sizes, data })
}

/// Whether these bytes begin like a gzip file.
pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// How the four files of a set are named.
pub struct Layout {
    /// File names begin with one of these, then `train`, `test` or `t10k`. Empty: those words may be anywhere.
    prefixes: &'static [&'static str],
    /// Whether there must be labels.
    labelled: bool,
}

impl Layout {
    /// MNIST and KMNIST: `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte`, and their labels.
    pub const MNIST: Layout = Layout { prefixes: &[""], labelled: true };
    /// EMNIST's balanced split, or the smaller 47-class set of the same images.
    pub const EMNIST: Layout = Layout { prefixes: &["emnist-balanced-", "emnist47-"], labelled: true };
    /// Ten QuickDraw categories packed as IDX.
    pub const QUICKDRAW: Layout = Layout { prefixes: &["quickdraw10-"], labelled: true };
    /// Any files with `images` and `train`, `test` or `t10k` in their names; labels are optional.
    pub const ANY: Layout = Layout { prefixes: &[], labelled: false };

    /// Reads the training and the test part from `folder`.
    pub(super) fn load(&self, folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
        let names = names_in(folder)?;
        let part = |words: &[&str]| self.load_part(folder, &names, words, reading);
        let (train, test) = rayon::join(|| part(TRAIN), || part(TEST));
        Ok((train?, test?))
    }

    /// Whether `folder` has all files of this layout.
    pub(super) fn is_in(&self, folder: &Path) -> bool {
        let Ok(names) = names_in(folder) else { return false };
        let has = |words, kind| matches!(self.find(folder, &names, words, kind), Ok(Some(_)));
        [TRAIN, TEST].iter().all(|words| has(words, "images") && (!self.labelled || has(words, "labels")))
    }

    fn load_part(&self, folder: &Path, names: &[String], words: &[&str], reading: &Reading) -> Result<Images> {
        let missing = |kind: &str| {
            let expected = self.prefixes.first().map_or_else(
                || format!("*{}*{kind}*", words[0]),
                |prefix| format!("{prefix}{}-{kind}-idx{}-ubyte", words[0], if kind == "images" { 3 } else { 1 }),
            );
            Error::Data(format!("no {expected} in {}, unpacked or as .gz", folder.display()))
        };
        let open = |name: &str| -> Result<(Vec<u8>, String)> {
            let path = folder.join(name);
            Ok((reading.file(&path)?, path.display().to_string()))
        };
        let (bytes, images_name) = open(&self.find(folder, names, words, "images")?.ok_or_else(|| missing("images"))?)?;
        let grey = images(&bytes, &images_name)?;
        let labels = match self.find(folder, names, words, "labels")? {
            Some(name) => {
                let (bytes, name) = open(&name)?;
                let (labels, count) = (labels(&bytes, &name)?, grey.pixels.len() / (grey.height * grey.width));
                if labels.len() != count {
                    let labels = labels.len();
                    return Err(Error::Data(format!("{images_name} holds {count} images, but {name} {labels} labels")));
                }
                Some(labels)
            }
            None if self.labelled => return Err(missing("labels")),
            None => None,
        };
        Ok(Images { side: reading.options.side, pixels: reading.fit(grey)?, labels })
    }

    /// The file with the `images` or `labels` of a part. Unpacked wins over `.gz`; two different files are an error.
    fn find(&self, folder: &Path, names: &[String], words: &[&str], kind: &str) -> Result<Option<String>> {
        let fits = |prefix: Option<&str>, name: &str| {
            let name = name.to_lowercase();
            name.contains(kind)
                && match prefix {
                    Some(prefix) => {
                        name.strip_prefix(prefix).is_some_and(|rest| words.iter().any(|w| rest.starts_with(w)))
                    }
                    None => words.iter().any(|word| name.contains(word)),
                }
        };
        let tries: Vec<Option<&str>> =
            if self.prefixes.is_empty() { vec![None] } else { self.prefixes.iter().copied().map(Some).collect() };
        for prefix in tries {
            let found: Vec<&String> = names.iter().filter(|name| fits(prefix, name)).collect();
            // Sorted names put `x` before `x.gz`.
            match found[..] {
                [] => {}
                [one] => return Ok(Some(one.clone())),
                [one, other] if *other == format!("{one}.gz") => return Ok(Some(one.clone())),
                [one, other, ..] => {
                    let folder = folder.display();
                    return Err(Error::Data(format!("{folder} has two files of {kind}, {one} and {other}: keep one")));
                }
            }
        }
        Ok(None)
    }
}

const TRAIN: &[&str] = &["train"];
const TEST: &[&str] = &["t10k", "test"];
