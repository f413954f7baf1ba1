//! IDX, the format of MNIST and its relatives: two zero bytes, a type, the number of dimensions, big-endian sizes, data.
//!
//! A file may be gzipped, in one member or several; that is seen from its first bytes, not from its name.

use super::{
    Grey, Images, MAX_SIDE, Reading,
    files_in::{Entry, entries, is_aside, words},
    sniff,
};
use crate::{Error, Observer, Result, observer::Silent};
use flate2::bufread::GzDecoder;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Parses an IDX file of images, raw or gzipped; `name` is what errors call it. Dimensions of size 1 beside the three are passed
/// over.
///
/// Integers are grey values from 0 to 255, floating-point numbers brightness from 0 to 1 (rounded to 8 bits).
/// Memory is taken only as the data arrives, so a false header cannot ask for more than the file really holds.
pub fn images(bytes: &[u8], name: &str) -> Result<Grey> {
    images_of(bytes, name, &Silent)
}

fn images_of(bytes: &[u8], name: &str, observer: &dyn Observer) -> Result<Grey> {
    let array = parse(bytes, name, 3, "images", observer)?;
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
    let array = parse(bytes, name, 1, "labels", &Silent)?;
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

fn parse(bytes: &[u8], name: &str, rank: usize, what: &str, observer: &dyn Observer) -> Result<Array> {
    let bad = |text: String| Error::Data(format!("{name}: {text}"));
    let packed = is_gzip(bytes);
    let unreadable = |e: std::io::Error| match e.kind() {
        _ if bytes.is_empty() => bad("the file is empty".into()),
        std::io::ErrorKind::UnexpectedEof => bad("the file is cut off".into()),
        _ => bad(format!("cannot be unpacked ({e}): the file is damaged")),
    };
    let mut reader: Box<dyn Read> = if packed { Box::new(Gunzip::new(bytes)) } else { Box::new(bytes) };
    let mut head = [0; 512];
    let magic = &mut head[..4];
    let begun = reader.read_exact(magic);
    if begun.is_err()
        && !packed
        && let Some(what) = sniff(bytes)
    {
        return Err(bad(format!("not an IDX file but {what}")));
    }
    begun.map_err(unreadable)?;
    let Some(kind) = Kind::from_code(magic[2]).filter(|_| magic[..2] == [0, 0]) else {
        let begin = magic.to_vec();
        // Enough of it to see what it is.
        let more = read_up_to(&mut reader, &mut head[4..]);
        return Err(bad(match sniff(&head[..4 + more]) {
            Some(what) => format!("not an IDX file but {what}"),
            None => {
                format!(
                    "not an IDX file: it begins with the bytes {begin:02x?} where 00 00 TYPE DIMENSIONS is expected"
                )
            }
        }));
    };
    let mut sizes = vec![0; usize::from(magic[3])];
    for size in &mut sizes {
        let mut field = [0; 4];
        reader.read_exact(&mut field).map_err(unreadable)?;
        *size = u32::from_be_bytes(field) as usize;
    }
    // As other programs write one channel: [count, 28, 28, 1] or [count, 1, 28, 28]; labels as [count, 1].
    while sizes.len() > rank
        && let Some(one) = sizes[1..].iter().position(|&size| size == 1)
    {
        sizes.remove(1 + one);
    }
    if sizes.len() != rank {
        return Err(bad(format!("has {} dimensions, {sizes:?}, but a file of {what} has {rank}", sizes.len())));
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
        return Err(bad(format!("the header promises {expected} bytes of {what}, more than the file can hold")));
    }
    let mut data = Vec::new();
    // One byte more than expected shows that a file goes on; reaching the end also makes gzip check its checksum.
    let mut reader = reader.take(expected + 1);
    while reader.by_ref().take(1 << 24).read_to_end(&mut data).map_err(unreadable)? > 0 {
        observer.go_on()?;
    }
    if data.len() as u64 != expected {
        let held = if data.len() as u64 > expected { "more".into() } else { format!("only {}", data.len()) };
        return Err(bad(format!("the header promises {expected} bytes of {what}, but the file holds {held}")));
    }
    Ok(Array { kind, sizes, data })
}

/// Fills as much of `buffer` as there is: how much that was.
fn read_up_to(reader: &mut dyn Read, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Ok(n @ 1..) = reader.read(&mut buffer[filled..]) {
        filled += n;
    }
    filled
}

/// Unpacks a gzip file of one member or several, and of zeros behind them, as tapes and some archives leave.
pub(super) struct Gunzip<'a>(GzDecoder<&'a [u8]>);

impl<'a> Gunzip<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Gunzip(GzDecoder::new(bytes))
    }
}

impl Read for Gunzip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.0.read(buffer)?;
            let rest = *self.0.get_ref();
            if n > 0 || buffer.is_empty() || rest.iter().all(|&byte| byte == 0) {
                return Ok(n);
            }
            if !is_gzip(rest) {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    "something else follows the packed bytes",
                ));
            }
            self.0 = GzDecoder::new(rest);
        }
    }
}

/// Whether these bytes begin like a gzip file.
pub(super) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// How the four files of a set are named.
pub struct Layout {
    /// File names begin with one of these, then with the word of the part. Empty: the words may be anywhere.
    prefixes: &'static [&'static str],
    /// Whether there must be labels.
    labelled: bool,
}

/// Half of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Train,
    Test,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Holds {
    Images,
    Labels,
}

impl Part {
    /// What a word of a file's name says.
    fn of(word: &str) -> Option<Self> {
        match word {
            "train" | "training" => Some(Part::Train),
            "t10k" | "test" | "testing" => Some(Part::Test),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        if self == Part::Train { "train" } else { "test" }
    }
}

impl Holds {
    /// What the words of a name say. "The labels of the images" are labels.
    fn of(words: &[String]) -> Option<Self> {
        let has = |list: [&str; 2]| words.iter().any(|word| list.contains(&word.as_str()));
        if has(["labels", "label"]) { Some(Holds::Labels) } else { has(["images", "image"]).then_some(Holds::Images) }
    }

    fn word(self) -> &'static str {
        if self == Holds::Images { "images" } else { "labels" }
    }
}

impl Layout {
    /// MNIST and KMNIST: `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte`, and their labels.
    pub const MNIST: Layout = Layout { prefixes: &[""], labelled: true };
    /// EMNIST's balanced split, or the smaller 47-class set of the same images.
    pub const EMNIST: Layout = Layout { prefixes: &["emnist-balanced-", "emnist47-"], labelled: true };
    /// Ten QuickDraw categories packed as IDX.
    pub const QUICKDRAW: Layout = Layout { prefixes: &["quickdraw10-"], labelled: true };
    /// Any files with the words `images` and `train`, `test` or `t10k` in their names; labels are optional.
    pub const ANY: Layout = Layout { prefixes: &[], labelled: false };

    /// Reads the training and the test part from `folder`.
    pub(super) fn load(&self, folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
        let files = files(folder)?;
        let (train, test) = rayon::join(
            || self.load_part(folder, &files, Part::Train, reading),
            || self.load_part(folder, &files, Part::Test, reading),
        );
        Ok((train?, test?))
    }

    /// Whether `folder` has all files of this layout.
    pub(super) fn is_in(&self, folder: &Path) -> bool {
        let Ok(files) = files(folder) else { return false };
        let has = |part, holds| matches!(self.find(folder, &files, part, holds), Ok(Some(_)));
        [Part::Train, Part::Test]
            .iter()
            .all(|&part| has(part, Holds::Images) && (!self.labelled || has(part, Holds::Labels)))
    }

    /// Whether `folder` has files of this layout.
    pub(super) fn any_in(&self, folder: &Path) -> bool {
        files(folder).is_ok_and(|files| files.iter().any(|file| self.role(&file.name).is_some()))
    }

    fn load_part(&self, folder: &Path, files: &[Entry], part: Part, reading: &Reading) -> Result<Images> {
        let missing = |holds: Holds| {
            let folder = folder.display();
            let Some(prefix) = self.prefixes.first() else {
                let (part, holds) = (part.word(), holds.word());
                let pictures = files.iter().any(|file| file.name.to_lowercase().ends_with(".png"));
                let pictures = if pictures { "; its pictures are read with images:FOLDER" } else { "" };
                return Error::Data(format!(
                    "no file with the words {part} and {holds} in its name in {folder} or up to two folders below{pictures}"
                ));
            };
            let part = if part == Part::Test && prefix.is_empty() { "t10k" } else { part.word() };
            let (holds, rank) = (holds.word(), if holds == Holds::Images { 3 } else { 1 });
            Error::Data(format!(
                "no {prefix}{part}-{holds}-idx{rank}-ubyte in {folder}, unpacked or as .gz: fetch the set with --download, or name \
                 the folder that has it, as in {}:FOLDER",
                reading.source.word()
            ))
        };
        let path = self.find(folder, files, part, Holds::Images)?.ok_or_else(|| missing(Holds::Images))?;
        let grey = images_of(&reading.file(&path)?, &path.display().to_string(), reading.observer);
        let grey = grey.map_err(|e| reading.remedy(&path, e))?;
        let labels = match self.find(folder, files, part, Holds::Labels)? {
            Some(labels_path) => {
                let labels = labels(&reading.file(&labels_path)?, &labels_path.display().to_string());
                let labels = labels.map_err(|e| reading.remedy(&labels_path, e))?;
                let (count, found) = (grey.pixels.len() / (grey.height * grey.width), labels.len());
                if found != count {
                    let (path, labels_path) = (path.display(), labels_path.display());
                    let both = format!("{path} holds {count} images, but {labels_path} {found} labels");
                    let advice = match reading.source {
                        super::Source::Public { .. } => "delete both, and --download fetches them anew",
                        _ => "put the files in their places that belong together",
                    };
                    return Err(Error::Data(format!("{both}: {advice}")));
                }
                Some(labels)
            }
            None if self.labelled => return Err(missing(Holds::Labels)),
            None => None,
        };
        Ok(Images { side: reading.options.side, pixels: reading.fit(grey)?, labels })
    }

    /// What the file of this name is, and which of the prefixes it has.
    fn role(&self, name: &str) -> Option<(Part, Holds, usize)> {
        if self.prefixes.is_empty() {
            let words = words(name);
            // The last of them: `test-drive-train-images` is for training.
            let part = words.iter().rev().find_map(|word| Part::of(word))?;
            return Some((part, Holds::of(&words)?, 0));
        }
        self.prefixes.iter().enumerate().find_map(|(i, prefix)| {
            let rest = name.to_lowercase().strip_prefix(prefix).map(words)?;
            Some((Part::of(rest.first()?)?, Holds::of(&rest)?, i))
        })
    }

    /// The file with the images or labels of a part. Unpacked wins over `.gz`; two different files are an error.
    fn find(&self, folder: &Path, files: &[Entry], part: Part, holds: Holds) -> Result<Option<PathBuf>> {
        let rank =
            |file: &&Entry| self.role(&file.name).filter(|role| (role.0, role.1) == (part, holds)).map(|role| role.2);
        let Some(best) = files.iter().filter_map(|file| rank(&file)).min() else { return Ok(None) };
        let found: Vec<&Entry> = files.iter().filter(|file| rank(file) == Some(best)).collect();
        // The same name, unpacked and packed, or spelled in two ways.
        let bare = |file: &Entry| words(file.name.strip_suffix(".gz").unwrap_or(&file.name));
        if found.iter().all(|file| bare(file) == bare(found[0])) {
            let unpacked = found.iter().find(|file| !file.name.ends_with(".gz"));
            return Ok(Some(unpacked.unwrap_or(&found[0]).path.clone()));
        }
        let other = found.iter().find(|file| bare(file) != bare(found[0])).expect("they differ");
        let (count, folder, one, other) = (found.len(), folder.display(), &found[0].name, &other.name);
        let (word, role) = (holds.word(), if part == Part::Train { "training" } else { "test" });
        Err(Error::Data(format!(
            "{folder} has {count} files of {role} {word}, among them {one} and {other}: one file should have the words train and \
             {word} in its name and one the words test and {word}; rename the others or put them elsewhere"
        )))
    }
}

/// The files of a folder that may be part of a set, by content if not by name: no folders, nothing unfinished or put aside.
fn files(folder: &Path) -> Result<Vec<Entry>> {
    let mut files = entries(folder)?;
    files.retain(|file| file.path.is_file() && !is_aside(&file.name));
    Ok(files)
}
