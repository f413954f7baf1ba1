//! Anybody's pictures: PNG, JPEG, GIF and BMP files of any size, seen as a viewer shows them.
//!
//! What is transparent is white, a GIF is its first frame, a photograph lies as its EXIF orientation says, colours become grey
//! as Pillow does it (ITU-R 601). Paper is bright in most pictures, and a model wants bright ink on black: so pictures that are
//! bright on average are inverted, unless [`Invert`] says otherwise.

use super::{Entry, Grey, Images, Invert, Reading, Source, entries, shuffle::SplitMix, sniff};
use crate::{Error, Result, files::quoted, observer::Unit};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, metadata::Orientation};
use rayon::prelude::*;
use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    io::Cursor,
    path::{Path, PathBuf},
};

/// The largest height or width of a picture, in pixels.
pub const MAX_SIDE: usize = 16_384;
/// The most pixels of a picture.
pub const MAX_PIXELS: usize = 100_000_000;

/// One picture in grey, as a viewer shows it on white paper, from the contents of a PNG, JPEG, GIF or BMP file; `name` is what
/// errors call it.
///
/// Memory for the pixels is taken only if they are at most [`MAX_SIDE`] wide and high, [`MAX_PIXELS`] in all, and no more than
/// so short a file can hold.
pub fn decode(bytes: &[u8], name: &str) -> Result<Grey> {
    decode_within(bytes, MAX_SIDE).map_err(|why| Error::Data(format!("{name} {why}")))
}

/// As [`decode`], for pictures of at most `max_side` pixels a side; the error says what is wrong, without a name.
pub(super) fn decode_within(bytes: &[u8], max_side: usize) -> Result<Grey, String> {
    let unreadable = |e: image::ImageError| format!("cannot be decoded: {e}").replace('\n', " ");
    let format = image::guess_format(bytes).ok();
    let Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::Bmp)) = format else {
        let what = sniff(bytes).unwrap_or("something else");
        return Err(format!("is not a PNG, JPEG, GIF or BMP picture but {what}"));
    };
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(unreadable)?;
    let (width, height) = (width as usize, height as usize);
    let pixels = width.saturating_mul(height);
    if pixels == 0 {
        return Err("has no pixels".into());
    }
    if width.max(height) > max_side || pixels > MAX_PIXELS {
        return Err(format!(
            "has {width}x{height} pixels, over the limit of {max_side} a side and {} million in all",
            MAX_PIXELS / 1_000_000
        ));
    }
    // The most pixels that a byte can stand for. Deflate expands at most 1,032 times, to 8 pixels a byte; a block of a JPEG takes a
    // bit; a code of GIF has 12 bits and stands for at most 4,096 pixels; a run of BMP has two bytes and at most 255 pixels.
    let most = match format {
        ImageFormat::Png => 8 * 1032,
        ImageFormat::Jpeg => 8 * 64,
        ImageFormat::Gif => 2_731,
        _ => 128,
    };
    if pixels > bytes.len().saturating_mul(most) {
        return Err(format!("claims {width}x{height} pixels, more than its {} bytes can hold", bytes.len()));
    }
    let mut limits = Limits::default();
    // 16 bits in four channels, and room for what a decoder keeps beside the pixels.
    limits.max_alloc = Some(8 * pixels as u64 + (16 << 20));
    let mut reader = reader();
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(Grey { height: image.height() as usize, width: image.width() as usize, pixels: grey(image) })
}

/// Grey values over white paper.
fn grey(image: DynamicImage) -> Vec<u8> {
    let luma = |[r, g, b]: [u8; 3]| {
        let sum = 19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b);
        ((sum + 0x8000) >> 16) as u8
    };
    if image.color().has_alpha() {
        let over = |value: u8, alpha: u8| {
            let (value, alpha) = (u32::from(value), u32::from(alpha));
            ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        let shown = |&image::Rgba([r, g, b, a]): &image::Rgba<u8>| luma([over(r, a), over(g, a), over(b, a)]);
        image.into_rgba8().pixels().map(shown).collect()
    } else if image.color().has_color() {
        image.into_rgb8().pixels().map(|pixel| luma(pixel.0)).collect()
    } else {
        image.into_luma8().into_raw()
    }
}

/// A picture in the size in which it will be shown, before it is inverted or padded.
struct Scaled {
    pixels: Vec<u8>,
    tall: usize,
    wide: usize,
    /// The width and height of the file.
    original: (usize, usize),
    /// From 0 for black to 1 for white.
    brightness: f64,
}

impl Scaled {
    fn new(grey: &Grey, reading: &Reading) -> Self {
        let Grey { height, width, ref pixels } = *grey;
        let brightness = pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / (255 * pixels.len()) as f64;
        let (pixels, tall, wide) = reading.options.fit.scale(pixels, height, width, reading.options.side);
        Scaled { pixels, tall, wide, original: (width, height), brightness }
    }
}

/// Reads a folder of pictures, its training part and its test part; or one picture, which is both.
pub(super) fn load(path: &Path, reading: &Reading) -> Result<(Images, Images)> {
    if path.is_file() {
        let image = one(path, reading)?;
        return Ok((image.clone(), image));
    }
    let (train, test) = find(path, reading)?;
    let all: Vec<&Picture> = train.iter().chain(&test).collect();
    let mut classes: Vec<&OsStr> = all.iter().filter_map(|picture| picture.class.as_deref()).collect();
    let number = |class: &OsStr| class.to_str().and_then(|name| name.parse::<u64>().ok());
    // `10` after `9`.
    classes.sort_by_key(|class| (number(class).unwrap_or(u64::MAX), *class));
    classes.dedup();
    if classes.len() > 1 << 16 {
        let (path, count) = (path.display(), classes.len());
        return Err(Error::Data(format!(
            "{path} has {count} folders of pictures, but there can be 65,536 classes at most"
        )));
    }
    let labels: HashMap<&OsStr, u16> = classes.into_iter().zip(0..=u16::MAX).collect();
    let label = |picture: &Picture| picture.class.as_deref().map(|class| labels[class]);
    let whole = all.iter().all(|picture| picture.class.is_some());
    let labels = |part: &[Picture]| whole.then(|| part.iter().filter_map(label).collect());

    let side = reading.options.side;
    let mut pixels = read(&all.iter().map(|picture| picture.path.as_path()).collect::<Vec<_>>(), reading)?;
    let later = pixels.split_off(train.len() * side * side);
    Ok((Images { side, pixels, labels: labels(&train) }, Images { side, pixels: later, labels: labels(&test) }))
}

/// Reads one picture.
pub(super) fn one(path: &Path, reading: &Reading) -> Result<Images> {
    Ok(Images { side: reading.options.side, pixels: read(&[path], reading)?, labels: None })
}

/// Decodes files, says what was decided about them, and returns `[count, side, side]`.
fn read(paths: &[&Path], reading: &Reading) -> Result<Vec<u8>> {
    let observer = reading.observer;
    observer.begin("Reading pictures", Some(paths.len() as u64), Unit::Items);
    let decoded = paths.par_iter().map(|path| {
        let bytes = reading.file(path)?;
        let scaled = decode_within(&bytes, MAX_SIDE).map(|grey| Scaled::new(&grey, reading));
        observer.advance(1);
        Ok(scaled.map_err(|why| (*path, why)))
    });
    let decoded: Result<Vec<_>> = decoded.collect();
    observer.end();
    let mut decoded = decoded?;
    let mut bad: Vec<&(&Path, String)> = decoded.iter().filter_map(|picture| picture.as_ref().err()).collect();
    bad.sort();
    if let Some((path, why)) = bad.first() {
        let more = match bad.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more of {} cannot be read", paths.len()),
        };
        return Err(Error::Data(format!("{} {why}{more}: replace such a file or take it away", path.display())));
    }
    let mut pictures: Vec<(&Path, Scaled)> =
        decoded.drain(..).zip(paths).filter_map(|(p, path)| Some((*path, p.ok()?))).collect();
    let odd = |(_, picture): &&(&Path, Scaled)| picture.original.0 != picture.original.1;
    if let Some((path, first)) = pictures.iter().find(odd) {
        let (count, (width, height)) = (pictures.iter().filter(odd).count(), first.original);
        observer.note(&format!(
            "{count} of {} pictures are not square ({} has {width}x{height} pixels): they are {}.",
            pictures.len(),
            path.display(),
            reading.options.fit.done()
        ));
    }
    let brightness = pictures.iter().map(|(_, picture)| picture.brightness).sum::<f64>() / pictures.len() as f64;
    let invert = match reading.options.invert {
        Invert::Auto => brightness > 0.5,
        wish => wish == Invert::Yes,
    };
    if invert && reading.options.invert == Invert::Auto {
        observer.note(&format!(
            "The pictures are bright on average ({brightness:.2} of 1), so they are taken for dark ink on white paper and inverted \
             (--invert no leaves them as they are)."
        ));
    }
    let size = reading.options.side * reading.options.side;
    let mut pixels = Vec::with_capacity(pictures.len() * size);
    for (_, picture) in &mut pictures {
        if invert {
            picture.pixels.iter_mut().for_each(|value| *value = 255 - *value);
        }
        pixels.extend(super::fit::pad(&picture.pixels, picture.tall, picture.wide, reading.options.side));
    }
    Ok(pixels)
}

/// A file and the folder that names its class.
struct Picture {
    path: PathBuf,
    class: Option<OsString>,
}

/// The pictures of a folder, for training and for testing, each in the order of their paths.
fn find(folder: &Path, reading: &Reading) -> Result<(Vec<Picture>, Vec<Picture>)> {
    let folder = &unwrapped(folder, reading)?;
    let top = entries(folder)?;
    let folders: Vec<&Entry> = top.iter().filter(|entry| entry.path.is_dir()).collect();
    let called = |names: &[&str]| folders.iter().find(|entry| names.contains(&entry.name.to_lowercase().as_str()));
    let train = called(&["train", "training"]);
    let test = called(&["test", "testing"]).or(called(&["val", "validation"]));
    let mut foreign = BTreeSet::new();
    let mut collect = |folder: &Path| -> Result<Vec<Picture>> {
        let mut found = Vec::new();
        walk(folder, None, 0, &mut found, &mut foreign)?;
        Ok(found)
    };
    let (train, test) = match (train, test) {
        (Some(train), Some(test)) => {
            if folders.len() > 2 {
                let (train, test) = (&train.name, &test.name);
                reading.observer.note(&format!("Of the folders in {}, {train} and {test} are read.", folder.display()));
            }
            let parts = (collect(&train.path)?, collect(&test.path)?);
            for (part, entry) in [(&parts.0, train), (&parts.1, test)] {
                if part.is_empty() {
                    return Err(Error::Data(format!(
                        "{} holds no PNG, JPEG, GIF or BMP pictures: put some into it, or take the folder away",
                        entry.path.display()
                    )));
                }
            }
            parts
        }
        // A folder `train` beside others may hold pictures of trains.
        (Some(train), None) if folders.len() == 1 => (collect(&train.path)?, vec![]),
        _ => (collect(folder)?, vec![]),
    };
    let foreign = foreign.into_iter().collect::<Vec<_>>().join(", ");
    let foreign = if foreign.is_empty() {
        foreign
    } else {
        format!("; files that end in {foreign} cannot be read, convert them to PNG")
    };
    if train.is_empty() {
        let idx = top.iter().any(|entry| entry.name.contains("ubyte") || entry.name.to_lowercase().ends_with(".idx"));
        let idx = if idx { "; its IDX files are read with idx:FOLDER" } else { "" };
        return Err(Error::Data(format!(
            "{} holds no PNG, JPEG, GIF or BMP pictures, and neither do its folders{foreign}{idx}",
            folder.display()
        )));
    }
    if !foreign.is_empty() {
        reading.observer.note(&format!("{} is not read completely{foreign}.", folder.display()));
    }
    if !test.is_empty() {
        return Ok((train, test));
    }
    hold_out(train, folder, reading)
}

/// The folder itself, or one in it that is all there is and has folders of its own: archives are often unpacked so.
fn unwrapped(folder: &Path, reading: &Reading) -> Result<PathBuf> {
    let mut found = folder.to_owned();
    for _ in 0..2 {
        let top = entries(&found)?;
        let mut folders = top.iter().filter(|entry| entry.path.is_dir());
        let (Some(only), None) = (folders.next(), folders.next()) else { break };
        let deep = entries(&only.path)?.iter().any(|entry| entry.path.is_dir());
        if !deep || only.name.to_lowercase().starts_with("train") || top.iter().any(|entry| is_picture(&entry.name)) {
            break;
        }
        found = only.path.clone();
    }
    if found != folder {
        reading.observer.note(&format!("The pictures are in {}.", found.display()));
    }
    Ok(found)
}

/// Keeps a tenth of the pictures for testing.
fn hold_out(mut all: Vec<Picture>, folder: &Path, reading: &Reading) -> Result<(Vec<Picture>, Vec<Picture>)> {
    if let [one] = &all[..] {
        return Err(Error::Data(format!(
            "{} holds one picture, but one to learn from and one to test on are needed: name the file itself, {}, to look at it \
             alone",
            folder.display(),
            quoted(Source::Images(one.path.clone()).to_os_string())
        )));
    }
    let (count, kept) = (all.len(), all.len().div_ceil(10));
    let mut for_testing = vec![false; count];
    SplitMix::new().permutation(count)[..kept].iter().for_each(|&i| for_testing[i] = true);
    let mut chosen = for_testing.into_iter();
    let test = all.extract_if(.., |_| chosen.next() == Some(true)).collect();
    reading.observer.note(&format!(
        "{} has no folders train and test: {kept} of its {count} pictures, drawn at random and the same every time, are kept for \
         testing.",
        folder.display()
    ));
    Ok((all, test))
}

/// Endings of pictures that cannot be read.
const FOREIGN: [&str; 17] = [
    "webp", "tif", "tiff", "heic", "heif", "avif", "svg", "jp2", "jxl", "ico", "tga", "ppm", "pgm", "pbm", "psd",
    "eps", "pdf",
];

/// How deep below a folder pictures are looked for; also what ends a loop of links.
const DEPTH: usize = 5;

fn walk(
    folder: &Path,
    class: Option<&OsString>,
    depth: usize,
    found: &mut Vec<Picture>,
    foreign: &mut BTreeSet<String>,
) -> Result<()> {
    for Entry { path, name } in entries(folder)? {
        if path.is_dir() {
            let own = path.file_name().unwrap_or_default().to_owned();
            if depth < DEPTH {
                walk(&path, Some(class.unwrap_or(&own)), depth + 1, found, foreign)?;
            }
            continue;
        }
        if is_picture(&name) && path.is_file() {
            found.push(Picture { path, class: class.cloned() });
            continue;
        }
        let extension = extension(&name);
        if FOREIGN.contains(&extension.as_str()) {
            foreign.insert(format!(".{extension}"));
        }
    }
    Ok(())
}

/// The end of a name in lower case.
fn extension(name: &str) -> String {
    name.rsplit_once('.').map_or("", |(_, extension)| extension).to_lowercase()
}

/// Whether a file is a picture that can be read, by its name.
fn is_picture(name: &str) -> bool {
    matches!(extension(name).as_str(), "png" | "jpg" | "jpeg" | "jpe" | "jfif" | "gif" | "bmp" | "dib")
}
