//! Data sets as 8-bit grey images of one size: reading them from disk, resizing, and fetching the official files.
//!
//! All sets follow one recipe (section 10 of the model): one channel, bright ink on black, resized with Pillow's bilinear
//! resampler on 8-bit images, not centred and not made binary. The model divides by 255.

pub mod download;
pub mod idx;
pub mod npy;
pub mod omniglot;
pub mod quickdraw;
mod resize;
pub mod synthetic;

pub use omniglot::{Run, one_shot_runs};
pub use resize::resize;

use crate::{Error, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Grey images of one size, ink bright, with labels where the set has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// Height and width of every image in pixels.
    pub side: usize,
    /// `[count, side, side]`, row-major, 0 to 255.
    pub pixels: Vec<u8>,
    /// `[count]`: the class of each image, counted from 0.
    pub labels: Option<Vec<u16>>,
}

impl Images {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / (self.side * self.side)
    }

    /// Whether there is no image at all. [`load`] never returns such a set.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Image `i`: `[side, side]`. Panics if there is no such image.
    pub fn image(&self, i: usize) -> &[u8] {
        let size = self.side * self.side;
        &self.pixels[i * size..(i + 1) * size]
    }
}

/// A set with its two parts.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    /// The word that names the set in a [`Source`]: `mnist`, `omniglot`, `idx`, ...
    pub name: String,
    /// What a model learns from.
    pub train: Images,
    /// What it is measured on.
    pub test: Images,
}

/// The public sets, each with an official address (see [`download`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Handwritten digits, 10 classes.
    Mnist,
    /// Cursive Japanese characters, 10 classes.
    Kmnist,
    /// Letters and digits: the 47 classes of the "balanced" split, in the orientation of the files, which is transposed.
    Emnist,
    /// Google's drawings, the ten categories of [`quickdraw::CATEGORIES`].
    QuickDraw,
    /// 1,623 characters of 50 alphabets: the background set for training, the evaluation set for testing.
    Omniglot,
}

impl Set {
    /// Every set.
    pub const ALL: [Set; 5] = [Set::Mnist, Set::Kmnist, Set::Emnist, Set::QuickDraw, Set::Omniglot];

    /// The word that names the set on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Set::Mnist => "mnist",
            Set::Kmnist => "kmnist",
            Set::Emnist => "emnist",
            Set::QuickDraw => "quickdraw",
            Set::Omniglot => "omniglot",
        }
    }
}

/// Where images come from. Parsed from and printed as `mnist`, `mnist:FOLDER`, `idx:FOLDER`, `synthetic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One of the public sets, in a folder; the cache folder of the set if none was given.
    Public {
        /// Which set.
        set: Set,
        /// Where its files are.
        folder: PathBuf,
    },
    /// A folder of IDX files with images of any size (see [`idx`]).
    Idx(PathBuf),
    /// Images drawn by the model itself from a fixed prior; no files.
    Synthetic,
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, folder) = match text.split_once(':') {
            Some((word, folder)) if !folder.is_empty() => (word, Some(expand_home(folder))),
            Some(_) => return Err(Error::Usage(format!("the data source `{text}` names no folder after the colon"))),
            None => (text, None),
        };
        let set = Set::ALL.into_iter().find(|set| set.name() == word);
        match (word, set, folder) {
            (_, Some(set), folder) => {
                Ok(Source::Public { set, folder: folder.unwrap_or_else(|| download::cache_folder(set)) })
            }
            ("idx", _, Some(folder)) => Ok(Source::Idx(folder)),
            ("synthetic", _, None) => Ok(Source::Synthetic),
            _ => Err(Error::Usage(format!(
                "`{text}` is not a data source: use mnist, kmnist, emnist, quickdraw or omniglot, each with an optional \
                 folder as in mnist:FOLDER, or idx:FOLDER for a folder of IDX files, or synthetic"
            ))),
        }
    }
}

/// A shell leaves the `~` of `mnist:~/data` alone, so it is replaced here.
fn expand_home(folder: &str) -> PathBuf {
    match (folder.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => folder.into(),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Source::Public { set, folder } => write!(f, "{}:{}", set.name(), folder.display()),
            Source::Idx(folder) => write!(f, "idx:{}", folder.display()),
            Source::Synthetic => f.write_str("synthetic"),
        }
    }
}

/// Reads a set from disk and resizes its images to `side` x `side` pixels (the model uses 50).
///
/// Fails with a sentence if the folder or a file is missing, damaged, or not what the set should hold.
pub fn load(source: &Source, side: usize) -> Result<DataSet> {
    if !(1..=MAX_SIDE).contains(&side) {
        return Err(Error::Usage(format!("images of {side} pixels a side cannot be made: use 1 to {MAX_SIDE}")));
    }
    let (name, (train, test)) = match source {
        Source::Public { set, folder } => (set.name(), load_public(*set, folder, side)?),
        Source::Idx(folder) => ("idx", idx::Layout::ANY.load(&existing(folder, source)?, side)?),
        Source::Synthetic => {
            let [train, test] = synthetic::COUNTS;
            ("synthetic", (synthetic::draw(train, side, 0), synthetic::draw(test, side, 1)))
        }
    };
    Ok(DataSet { name: name.into(), train, test })
}

/// As [`load`], after fetching a public set that is not there yet if `download` is set.
pub fn load_or_fetch(source: &Source, side: usize, download: bool) -> Result<DataSet> {
    if download && matches!(source, Source::Public { .. }) {
        download::fetch(source)?;
    }
    load(source, side)
}

/// The largest height or width of an image that is read or made. Far above any set of drawings; a larger number in a file
/// is damage.
pub const MAX_SIDE: usize = 2048;

fn load_public(set: Set, folder: &Path, side: usize) -> Result<(Images, Images)> {
    let folder = &existing(folder, &Source::Public { set, folder: folder.into() })?;
    match set {
        Set::Mnist | Set::Kmnist => idx::Layout::MNIST.load(folder, side),
        Set::Emnist => idx::Layout::EMNIST.load(folder, side),
        Set::QuickDraw => quickdraw::load(folder, side),
        Set::Omniglot => omniglot::load(folder, side),
    }
}

fn existing(folder: &Path, source: &Source) -> Result<PathBuf> {
    let advice = match source {
        Source::Public { set, .. } => {
            format!("download the set first (--download), or name its folder as in {}:FOLDER", set.name())
        }
        _ => "name an existing folder".into(),
    };
    match folder.metadata() {
        Ok(found) if found.is_dir() => Ok(folder.into()),
        Ok(_) => Err(Error::Data(format!("{} is a file, not a folder of data: {advice}", folder.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Data(format!("the data folder {} does not exist: {advice}", folder.display())))
        }
        Err(e) => Err(Error::io("open the data folder", folder, e)),
    }
}

/// The names of the files and folders directly in `folder`, sorted, without hidden ones.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = list().map_err(|e| Error::io("list the folder", folder, e))?;
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    Ok(names)
}
