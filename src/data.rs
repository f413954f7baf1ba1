//! Data sets as 8-bit grey images of one size: reading them from disk, resizing, and fetching the official files.
//!
//! All sets follow one recipe (section 10 of the model): one channel, bright ink on black, resized with Pillow's bilinear
//! resampler on 8-bit images, not centred and not made binary. The model divides by 255.

pub mod download;
mod fit;
pub mod idx;
pub mod npy;
pub mod omniglot;
pub mod quickdraw;
mod resize;
mod source;
pub mod synthetic;

pub use fit::{Fit, Invert};
pub use omniglot::{Run, one_shot_runs};
pub use resize::resize;
pub use source::Source;

use crate::{
    Error, Observer, Result,
    observer::{Silent, Unit},
};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
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

/// Grey images of one shape as they are in a file, before they are made square.
#[derive(Clone, Debug, PartialEq)]
pub struct Grey {
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// `[count, height, width]`, 0 to 255.
    pub pixels: Vec<u8>,
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

/// How a set is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Height and width that every image gets in pixels, 1 to [`MAX_SIDE`] (the paper: 50).
    pub side: usize,
    /// Fetch a public set from its official address where it is not there yet.
    pub download: bool,
    /// How images that are not square become square.
    pub fit: Fit,
    /// Whether dark and bright are exchanged.
    pub invert: Invert,
}

impl Options {
    /// Images of `side` x `side` pixels; nothing is fetched, everything else is as it is by default.
    pub fn new(side: usize) -> Self {
        Options { side, download: false, fit: Fit::default(), invert: Invert::default() }
    }
}

/// Reads a set from disk and resizes its images to `side` x `side` pixels, with the [`Options`] that are the default, in silence.
///
/// Fails with a sentence if the folder or a file is missing, damaged, or not what the set should hold.
pub fn load(source: &Source, side: usize) -> Result<DataSet> {
    load_or_fetch(source, &Options::new(side), &Silent)
}

/// Reads a set as `options` say, after fetching it if that is among them. `observer` hears how far it is and what was decided,
/// and may stop it, which takes less than a second.
///
/// # Errors
/// A sentence if the folder or a file is missing, damaged, or not what the set should hold; [`Error::Stopped`].
pub fn load_or_fetch(source: &Source, options: &Options, observer: &dyn Observer) -> Result<DataSet> {
    if !(1..=MAX_SIDE).contains(&options.side) {
        let side = options.side;
        return Err(Error::Usage(format!("images of {side} pixels a side cannot be made: use 1 to {MAX_SIDE}")));
    }
    if options.download && matches!(source, Source::Public { .. }) {
        download::fetch(source, observer)?;
    }
    let reading = Reading::new(source, options, observer);
    let (train, test) = match source {
        Source::Public { set, folder } => load_public(*set, folder, &reading)?,
        Source::Idx(folder) => idx::Layout::ANY.load(&existing(folder, source)?, &reading)?,
        Source::Synthetic => {
            let [train, test] = synthetic::COUNTS;
            observer.begin("Drawing strokes", Some((train + test) as u64), Unit::Items);
            let drawn = synthetic::drawn(train, options.side, 0, observer)
                .and_then(|train| Ok((train, synthetic::drawn(test, options.side, 1, observer)?)));
            observer.end();
            drawn?
        }
    };
    Ok(DataSet { name: source.word().into(), train, test })
}

/// What the readers of a set have to know beside its folder.
struct Reading<'a> {
    options: &'a Options,
    observer: &'a dyn Observer,
    /// Whether something has been said about images that are not square.
    shape_said: AtomicBool,
}

impl<'a> Reading<'a> {
    fn new(_source: &Source, options: &'a Options, observer: &'a dyn Observer) -> Self {
        Reading { options, observer, shape_said: AtomicBool::new(false) }
    }

    /// The images of a file or several as they are wanted: `[.., side, side]`.
    fn fit(&self, mut grey: Grey) -> Result<Vec<u8>> {
        let Options { side, fit, invert, .. } = *self.options;
        let (height, width) = (grey.height, grey.width);
        if height != width && !self.shape_said.swap(true, Relaxed) {
            self.observer.note(&format!("images of {width}x{height} pixels are {}", fit.done()));
        }
        if invert == Invert::Yes {
            grey.pixels.iter_mut().for_each(|value| *value = 255 - *value);
        }
        // A second's work at most between two looks at the observer.
        const AT_ONCE: usize = 1 << 24;
        let (size, mut fitted) =
            (height * width, Vec::with_capacity(grey.pixels.len() / (height * width) * side * side));
        for some in grey.pixels.chunks(AT_ONCE.div_ceil(size) * size) {
            self.observer.go_on()?;
            fitted.extend(fit.square(some, height, width, side));
        }
        Ok(fitted)
    }

    /// The whole of a file.
    fn file(&self, path: &Path) -> Result<Vec<u8>> {
        let cannot = |e| Error::io("read", path, e);
        let (mut file, mut bytes) = (File::open(path).map_err(cannot)?, Vec::new());
        while (&mut file).take(1 << 24).read_to_end(&mut bytes).map_err(cannot)? > 0 {
            self.observer.go_on()?;
        }
        Ok(bytes)
    }
}

/// The largest height or width of an image that is read or made. Far above any set of drawings; a larger number in a file
/// is damage.
pub const MAX_SIDE: usize = 2048;

fn load_public(set: Set, folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
    let folder = &existing(folder, &Source::Public { set, folder: folder.into() })?;
    match set {
        Set::Mnist | Set::Kmnist => idx::Layout::MNIST.load(folder, reading),
        Set::Emnist => idx::Layout::EMNIST.load(folder, reading),
        Set::QuickDraw => quickdraw::load(folder, reading),
        Set::Omniglot => omniglot::load(folder, reading),
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
