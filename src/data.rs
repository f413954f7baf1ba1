//! Data sets as 8-bit grey images of one size: reading them from disk, resizing, and fetching the official files.
//!
//! All sets follow one recipe (section 10 of the model): one channel, bright ink on black, resized with Pillow's bilinear
//! resampler on 8-bit images, not centred and not made binary. The model divides by 255.
//!
//! [`load_or_fetch`] reads a [`Source`], [`read_picture`] a single picture.

#[cfg(feature = "download")]
pub mod download;
#[cfg(not(feature = "download"))]
#[path = "data/no_download.rs"]
pub mod download;
mod files_in;
mod fit;
pub mod idx;
pub mod npy;
pub mod omniglot;
pub mod pictures;
pub mod quickdraw;
mod resize;
mod shuffle;
mod sniff;
mod source;
pub mod synthetic;

pub use fit::{Fit, Invert};
pub use omniglot::{Run, alphabets_of, one_shot_runs};
pub use resize::resize;
pub use source::Source;

use files_in::{Entry, entries};
pub(crate) use sniff::sniff;

use crate::{
    Error, Observer, Result,
    observer::{Silent, Unit},
};
use rayon::prelude::*;
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

    /// Whether the folder has all files of the set.
    fn is_in(self, folder: &Path) -> bool {
        match self {
            Set::Mnist | Set::Kmnist => idx::Layout::MNIST.is_in(folder),
            Set::Emnist => idx::Layout::EMNIST.is_in(folder),
            Set::QuickDraw => quickdraw::is_in(folder),
            Set::Omniglot => omniglot::is_in(folder),
        }
    }

    /// Whether the folder has files of the set.
    fn any_in(self, folder: &Path) -> bool {
        match self {
            Set::Mnist | Set::Kmnist => idx::Layout::MNIST.any_in(folder),
            Set::Emnist => idx::Layout::EMNIST.any_in(folder),
            Set::QuickDraw => quickdraw::any_in(folder),
            Set::Omniglot => omniglot::any_in(folder),
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
    check_side(options.side)?;
    if options.download && matches!(source, Source::Public { .. }) {
        download::fetch(source, observer)?;
    }
    let reading = Reading::new(source, options, observer);
    let set = match source {
        Source::Public { set, folder } => load_public(*set, folder, &reading)?,
        Source::Idx(folder) => {
            let layout = idx::Layout::ANY;
            let folder = reading.locate(&reading.existing(folder)?, &|f| layout.any_in(f), &|f| layout.is_in(f))?;
            layout.load(&folder, &reading)?
        }
        Source::Images(path) => pictures::load(&reading.existing(path)?, &reading)?,
        Source::Synthetic => {
            let [train, test] = synthetic::COUNTS;
            observer.begin("Drawing strokes", Some((train + test) as u64), Unit::Items);
            let drawn = synthetic::drawn(train, options.side, 0, observer)
                .and_then(|train| Ok((train, synthetic::drawn(test, options.side, 1, observer)?)));
            observer.end();
            drawn?
        }
    };
    let set = DataSet { name: source.word().into(), train: set.0, test: set.1 };
    remark(&set, observer);
    Ok(set)
}

/// Reads one picture, a PNG, JPEG, GIF or BMP file, as [`Source::Images`] reads many: a set of one image without a label.
///
/// # Errors
/// A sentence if it is missing, damaged, or not such a picture; [`Error::Stopped`].
pub fn read_picture(path: &Path, options: &Options, observer: &dyn Observer) -> Result<Images> {
    check_side(options.side)?;
    let source = Source::Images(path.into());
    let picture = pictures::one(path, &Reading::new(&source, options, observer))?;
    remark_on(&picture, &format!("The picture {}", path.display()), observer);
    Ok(picture)
}

fn check_side(side: usize) -> Result<()> {
    if (1..=MAX_SIDE).contains(&side) {
        return Ok(());
    }
    Err(Error::Usage(format!("images of {side} pixels a side cannot be made: use 1 to {MAX_SIDE}")))
}

/// Tells the observer what is plausible in a set but probably not meant.
fn remark(set: &DataSet, observer: &dyn Observer) {
    for (part, name) in [(&set.train, "training"), (&set.test, "test")] {
        if remark_on(part, &format!("The {name} set of {}", set.name), observer) {
            // What is true of the one is true of the other.
            break;
        }
    }
}

fn remark_on(images: &Images, name: &str, observer: &dyn Observer) -> bool {
    let of_one = |image: &[u8]| {
        let sum = image.iter().map(|&value| u64::from(value)).sum::<u64>();
        let brightest = image.iter().copied().max().unwrap_or(0);
        (sum, brightest, usize::from(image.iter().all(|value| *value == image[0])))
    };
    let each = images.pixels.par_chunks(images.side * images.side).map(of_one);
    let (sum, brightest, empty) = each.reduce(|| (0, 0, 0), |a, b| (a.0 + b.0, a.1.max(b.1), a.2 + b.2));
    let mean = sum as f64 / (255 * images.pixels.len()) as f64;
    let sentence = if mean > 0.5 {
        format!(
            "{name} is bright on average ({mean:.2} of 1): ink should be bright and paper black (--invert yes turns it round)"
        )
    } else if brightest == 0 {
        format!("{name} is black throughout: there is nothing to learn from it")
    } else if brightest == 1 {
        format!(
            "{name} has no value above 1 of 255, which is almost black: if it holds masks of 0 and 1, multiply them by 255"
        )
    } else if brightest < 64 {
        format!("{name} is very dark: its brightest value is {brightest} of 255")
    } else if 10 * empty > images.len() {
        format!("{name} has {empty} images of {} that show nothing, all of one grey", images.len())
    } else {
        return false;
    };
    observer.note(&format!("{sentence}."));
    true
}

/// What the readers of a set have to know beside its folder.
struct Reading<'a> {
    source: &'a Source,
    options: &'a Options,
    observer: &'a dyn Observer,
    /// Whether something has been said about images that are not square.
    shape_said: AtomicBool,
}

impl<'a> Reading<'a> {
    fn new(source: &'a Source, options: &'a Options, observer: &'a dyn Observer) -> Self {
        Reading { source, options, observer, shape_said: AtomicBool::new(false) }
    }

    /// The images of a file or several as they are wanted: `[.., side, side]`.
    fn fit(&self, mut grey: Grey) -> Result<Vec<u8>> {
        let Options { side, fit, invert, .. } = *self.options;
        let (height, width) = (grey.height, grey.width);
        if height != width && !self.shape_said.swap(true, Relaxed) {
            self.observer.note(&format!("The images have {width}x{height} pixels: they are {}.", fit.done()));
        }
        if invert == Invert::Yes {
            grey.pixels.iter_mut().for_each(|value| *value = 255 - *value);
        }
        // A second's work at most between two looks at the observer.
        const AT_ONCE: usize = 1 << 24;
        let size = height * width;
        let mut fitted = Vec::with_capacity(grey.pixels.len() / size * side * side);
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

    /// Adds to what is wrong with the file or folder `path` how to put it right.
    fn remedy(&self, path: &Path, error: Error) -> Error {
        match (error, self.source) {
            (Error::Data(what), Source::Public { .. }) => {
                Error::Data(format!("{what}: delete {}, and --download fetches it anew", path.display()))
            }
            (Error::Data(what), _) => Error::Data(format!("{what}: put a right file in its place")),
            (error, _) => error,
        }
    }

    /// The folder itself if it has some of the files that are looked for, else the only one up to two levels below that has all.
    fn locate(&self, folder: &Path, some: &dyn Fn(&Path) -> bool, all: &dyn Fn(&Path) -> bool) -> Result<PathBuf> {
        let found = files_in::locate(folder, some, all)?;
        if found != folder {
            self.observer.note(&format!("The files of {} are in {}.", self.source.word(), found.display()));
        }
        Ok(found)
    }

    /// `folder` if it is there.
    fn existing(&self, folder: &Path) -> Result<PathBuf> {
        let advice = match self.source {
            Source::Public { set, .. } => {
                format!("fetch the set with --download, or name the folder that has it, as in {}:FOLDER", set.name())
            }
            Source::Images(_) => "name a folder of pictures, or one picture".into(),
            _ => "name an existing folder".into(),
        };
        match folder.metadata() {
            Ok(found) if found.is_dir() || matches!(self.source, Source::Images(_)) => Ok(folder.into()),
            Ok(_) => Err(Error::Data(format!("{} is a file, not a folder of data: {advice}", folder.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::Data(format!("the data folder {} does not exist: {advice}", folder.display())))
            }
            Err(e) => Err(Error::io("open the data folder", folder, e)),
        }
    }
}

/// The largest height or width of an image that is read or made. Far above any set of drawings; a larger number in a file
/// is damage.
pub const MAX_SIDE: usize = 2048;

fn load_public(set: Set, folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
    let folder = reading.existing(folder)?;
    let folder = &reading.locate(&folder, &|folder| set.any_in(folder), &|folder| set.is_in(folder))?;
    match set {
        Set::Mnist | Set::Kmnist => idx::Layout::MNIST.load(folder, reading),
        Set::Emnist => idx::Layout::EMNIST.load(folder, reading),
        Set::QuickDraw => quickdraw::load(folder, reading),
        Set::Omniglot => omniglot::load(folder, reading),
    }
}
