//! Data as people really have them: what other programs write, folders as they grow, names as they come.

mod common;

use common::{assert_says, characters, png, source, write, zip_file};
use dood::{
    Error, Observer,
    data::{
        DataSet, Fit, Images, Invert, Options, Source, idx, load, load_or_fetch, npy, omniglot, pictures, read_picture,
    },
    observer::{Silent, Unit},
};
use flate2::{Compression, Crc, GzBuilder, write::GzEncoder, write::ZlibEncoder};
use std::{
    ffi::OsString,
    fs,
    io::{Cursor, Write},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tempfile::tempdir;

/// Collects notes; stops after so many units of progress.
struct Watch {
    notes: Mutex<Vec<String>>,
    tasks: Mutex<Vec<String>>,
    left: AtomicU64,
}

impl Watch {
    fn new() -> Self {
        Self::until(u64::MAX)
    }

    fn until(units: u64) -> Self {
        Watch { notes: Mutex::default(), tasks: Mutex::default(), left: units.into() }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }
}

impl Observer for Watch {
    fn begin(&self, task: &str, _: Option<u64>, _: Unit) {
        self.tasks.lock().unwrap().push(task.into());
    }

    fn advance(&self, units: u64) {
        self.left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(units))).unwrap();
    }

    fn note(&self, sentence: &str) {
        assert!(sentence.ends_with('.') && !sentence.contains('\n'), "not one sentence: {sentence}");
        self.notes.lock().unwrap().push(sentence.into());
    }

    fn stopped(&self) -> bool {
        self.left.load(Relaxed) == 0
    }
}

/// Reads a set: the set, and what was said.
fn read(source: &Source, options: Options) -> (DataSet, Vec<String>) {
    let watch = Watch::new();
    let set = load_or_fetch(source, &options, &watch).unwrap_or_else(|e| panic!("{source}: {e}"));
    (set, watch.notes())
}

/// The sentence with which loading fails.
fn complaint(word: &str, folder: &Path) -> String {
    let error = load(&source(word, folder), 8).unwrap_err().to_string();
    assert_says(&error, &[]);
    error
}

// ---- Small files, made by hand ----

fn idx_file(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    sizes.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(data);
    file
}

/// Two 8x8 images of bright ink, as in ../shared/field/make.py.
fn ink() -> Vec<u8> {
    let image = (0..64).map(|i| if (1..7).contains(&(i / 8)) && (3..5).contains(&(i % 8)) { 255 } else { 0 });
    image.clone().chain(image).collect()
}

fn ink_file() -> Vec<u8> {
    idx_file(&[2, 8, 8], &ink())
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A PNG of any kind: bit depth, colour type, interlacing, chunks before the pixels, rows with their filter bytes.
fn raw_png(
    size: (u32, u32),
    depth: u8,
    colour: u8,
    interlaced: bool,
    chunks: &[(&[u8; 4], &[u8])],
    rows: &[u8],
) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8; 4], data: &[u8]| {
        let mut crc = Crc::new();
        crc.update(name);
        crc.update(data);
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(name);
        file.extend(data);
        file.extend(crc.sum().to_be_bytes());
    };
    let header = [&size.0.to_be_bytes()[..], &size.1.to_be_bytes(), &[depth, colour, 0, 0, interlaced.into()]].concat();
    chunk(b"IHDR", &header);
    chunks.iter().for_each(|(name, data)| chunk(name, data));
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(rows).unwrap();
    chunk(b"IDAT", &packed.finish().unwrap());
    chunk(b"IEND", &[]);
    file
}

/// Rows of pixels with a filter byte of 0 before each.
fn rows(width: usize, pixels: &[u8]) -> Vec<u8> {
    pixels.chunks(width).flat_map(|row| [&[0], row].concat()).collect()
}

fn code(image: impl Into<image::DynamicImage>, format: image::ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn grey_png(width: u32, height: u32, grey: impl Fn(u32, u32) -> u8) -> Vec<u8> {
    code(image::GrayImage::from_fn(width, height, |x, y| image::Luma([grey(x, y)])), image::ImageFormat::Png)
}

/// Where the ink of an 8x8 drawing is.
fn inked(x: u32, y: u32) -> bool {
    (1..7).contains(&y) && (3..5).contains(&x)
}

/// That drawing, black on white.
fn black_on_white() -> Vec<u8> {
    (0..64).map(|i| if inked(i % 8, i / 8) { 0 } else { 255 }).collect()
}

#[track_caller]
fn decoded(bytes: &[u8]) -> Vec<u8> {
    pictures::decode(bytes, "x").unwrap().pixels
}

// ---- Transparency ----

#[test]
fn transparent_pictures_are_seen_on_white_whatever_holds_the_transparency() {
    let pixels = || (0..64u32).map(|i| inked(i % 8, i / 8));
    let whites: Vec<u8> = pixels().flat_map(|ink| if ink { [0, 0, 0, 255] } else { [0, 0, 0, 0] }).collect();
    let wide = |values: &[u8]| values.iter().flat_map(|&v| [v, v]).collect::<Vec<u8>>();
    let grey_alpha: Vec<u8> = pixels().flat_map(|ink| [0, if ink { 255 } else { 0 }]).collect();
    let index: Vec<u8> = pixels().map(|ink| ink.into()).collect();
    let key: Vec<u8> = pixels().map(|ink| if ink { 0 } else { 7 }).collect();
    let colours: Vec<u8> = pixels().flat_map(|ink| if ink { [0, 0, 0] } else { [7, 8, 9] }).collect();
    let bits: Vec<u8> = index.chunks(8).map(|row| row.iter().fold(0, |byte, ink| byte << 1 | (1 - ink))).collect();
    let mut gif = Vec::new();
    let frame = image::Frame::new(image::RgbaImage::from_raw(8, 8, whites.clone()).unwrap());
    image::codecs::gif::GifEncoder::new(&mut gif).encode_frame(frame).unwrap();
    let palette: &[u8] = &[9, 9, 9, 0, 0, 0];
    for (name, file) in [
        ("RGBA", raw_png((8, 8), 8, 6, false, &[], &rows(32, &whites))),
        ("RGBA of 16 bits", raw_png((8, 8), 16, 6, false, &[], &rows(64, &wide(&whites)))),
        ("grey and alpha", raw_png((8, 8), 8, 4, false, &[], &rows(16, &grey_alpha))),
        ("grey and alpha of 16 bits", raw_png((8, 8), 16, 4, false, &[], &rows(32, &wide(&grey_alpha)))),
        ("a palette", raw_png((8, 8), 8, 3, false, &[(b"PLTE", palette), (b"tRNS", &[0, 255])], &rows(8, &index))),
        (
            "a palette with a short tRNS",
            raw_png((8, 8), 8, 3, false, &[(b"PLTE", palette), (b"tRNS", &[0])], &rows(8, &index)),
        ),
        ("one grey", raw_png((8, 8), 8, 0, false, &[(b"tRNS", &[0, 7])], &rows(8, &key))),
        ("one grey of 16 bits", raw_png((8, 8), 16, 0, false, &[(b"tRNS", &[7, 7])], &rows(16, &wide(&key)))),
        ("one of two greys", raw_png((8, 8), 1, 0, false, &[(b"tRNS", &[0, 1])], &rows(1, &bits))),
        ("one colour", raw_png((8, 8), 8, 2, false, &[(b"tRNS", &[0, 7, 0, 8, 0, 9])], &rows(24, &colours))),
        ("a GIF", gif),
    ] {
        assert_eq!(decoded(&file), black_on_white(), "{name}");
    }
}

#[test]
fn what_is_half_transparent_is_half_white() {
    let file = |values: [u8; 8]| raw_png((2, 1), 8, 6, false, &[], &rows(8, &values));
    assert_eq!(decoded(&file([0, 0, 0, 128, 0, 0, 0, 64])), [127, 191]);
    // A colour under full transparency does not count; one on top counts as Pillow sees it.
    assert_eq!(decoded(&file([255, 0, 0, 0, 255, 0, 0, 255])), [255, 76]);
    assert_eq!(decoded(&file([0, 255, 0, 255, 0, 0, 255, 255])), [150, 29]);
}

#[test]
fn omniglot_drawn_on_nothing_equals_omniglot_drawn_on_white() {
    let clear = |png: &[u8]| {
        let mut image = image::load_from_memory(png).unwrap().into_rgba8();
        image.pixels_mut().for_each(|pixel| *pixel = image::Rgba([0, 0, 0, 255 - pixel.0[0]]));
        code(image, image::ImageFormat::Png)
    };
    let (flat, transparent) = (tempdir().unwrap(), tempdir().unwrap());
    for root in ["images_background", "images_evaluation"] {
        let drawings: Vec<_> = characters(root).into_iter().filter(|(path, _)| !path.contains("._")).collect();
        write(flat.path(), &format!("{root}.zip"), &zip_file(&drawings));
        let drawings: Vec<_> = drawings.into_iter().map(|(path, png)| (path, clear(&png))).collect();
        write(transparent.path(), &format!("{root}.zip"), &zip_file(&drawings));
    }
    let flat = load(&source("omniglot", flat.path()), 28).unwrap();
    assert_eq!(load(&source("omniglot", transparent.path()), 28).unwrap(), flat);
    assert!(flat.train.pixels.contains(&0) && flat.train.pixels.contains(&255));
}

// ---- What writers of PNG, JPEG, GIF and BMP make ----

#[test]
fn every_kind_of_png_has_its_greys() {
    let row = |bytes: &[u8]| [&[0], bytes].concat();
    let ramp = |depth: u8, bytes: &[u8]| raw_png((4, 1), depth, 0, false, &[], &row(bytes));
    assert_eq!(decoded(&ramp(1, &[0b0101_0000])), [0, 255, 0, 255]);
    assert_eq!(decoded(&ramp(2, &[0b00_01_10_11])), [0, 85, 170, 255]);
    assert_eq!(decoded(&ramp(4, &[0x0f, 0x37])), [0, 255, 51, 119]);
    assert_eq!(decoded(&ramp(8, &[0, 1, 254, 255])), [0, 1, 254, 255]);
    // 16 bits are rounded, not cut: 0x00ff of 0xffff is nearer to 1 than to 0.
    assert_eq!(decoded(&ramp(16, &[0, 0xff, 0x80, 0x80, 0xff, 0, 0xff, 0xff])), [1, 128, 254, 255]);
    let palette: &[(&[u8; 4], &[u8])] = &[(b"PLTE", &[10, 10, 10, 200, 200, 200, 255, 255, 255])];
    assert_eq!(decoded(&raw_png((4, 1), 2, 3, false, palette, &row(&[0b00_01_10_00]))), [10, 200, 255, 10]);
    let rgb16 = raw_png((1, 1), 16, 2, false, &[], &row(&[0x30, 0x30, 0x30, 0x30, 0x30, 0x30]));
    assert_eq!(decoded(&rgb16), [0x30]);
    // Chunks that mean nothing here: a time, a text, a resolution, one of a program's own, a gamma that viewers ignore too.
    let chunks: &[(&[u8; 4], &[u8])] = &[
        (b"gAMA", &45_455u32.to_be_bytes()),
        (b"pHYs", &[0, 0, 11, 19, 0, 0, 11, 19, 1]),
        (b"tEXt", b"Software\0Paint"),
        (b"tIME", &[7, 230, 1, 1, 0, 0, 0]),
        (b"prVt", b"whatever"),
    ];
    assert_eq!(decoded(&raw_png((4, 1), 8, 0, false, chunks, &row(&[0, 1, 254, 255]))), [0, 1, 254, 255]);
    // Bytes behind the end, as some servers and disks add.
    assert_eq!(decoded(&[ramp(8, &[0, 1, 2, 3]), b"\n\0\0".to_vec()].concat()), [0, 1, 2, 3]);
    // Interlaced: the seven passes of Adam7 over 3x3 pixels of values 1 to 9.
    let passes = [&[0, 1][..], &[0, 3], &[0, 7, 9], &[0, 2], &[0, 8], &[0, 4, 5, 6]].concat();
    assert_eq!(decoded(&raw_png((3, 3), 8, 0, true, &[], &passes)), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn jpeg_gif_and_bmp_have_their_greys() {
    use image::ImageFormat::{Bmp, Gif, Jpeg};
    let half = |x: u32, _: u32| if x < 16 { 0 } else { 255 };
    let grey = image::GrayImage::from_fn(32, 32, |x, y| image::Luma([half(x, y)]));
    let colour = image::DynamicImage::from(grey.clone()).into_rgb8();
    let clear = image::DynamicImage::from(grey.clone()).into_rgba8();
    for (name, file) in [
        ("grey JPEG", code(grey.clone(), Jpeg)),
        ("colour JPEG", code(colour.clone(), Jpeg)),
        ("grey BMP", code(grey, Bmp)),
        ("colour BMP", code(colour, Bmp)),
        ("BMP with alpha", code(clear.clone(), Bmp)),
        ("GIF", code(clear, Gif)),
    ] {
        let pixels = decoded(&file);
        assert!(
            pixels.chunks(32).all(|row| row[..16].iter().all(|&v| v < 4) && row[16..].iter().all(|&v| v > 251)),
            "{name}"
        );
    }
    // Only the first of a GIF's frames is seen.
    let mut gif = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
    for value in [0, 255] {
        let frame = image::RgbaImage::from_pixel(2, 2, image::Rgba([value, value, value, 255]));
        encoder.encode_frame(image::Frame::new(frame)).unwrap();
    }
    drop(encoder);
    assert_eq!(decoded(&gif), [0; 4]);
}

/// Black to the left, white to the right, 16x16, as Pillow writes it: progressive, four inks (inverted, as Photoshop does it), one
/// bit, palettes, interlaced, transparent, turned by its EXIF orientation.
#[test]
fn what_pillow_writes_is_seen_as_pillow_sees_it() {
    let files = fs::read_dir("tests/pictures").unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> = files.collect();
    assert_eq!(files.len(), 13);
    for path in files {
        let seen =
            pictures::decode(&fs::read(&path).unwrap(), "x").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!((seen.height, seen.width), (16, 16), "{}", path.display());
        for row in seen.pixels.chunks(16) {
            let (left, right) = row.split_at(8);
            assert!(left.iter().all(|&v| v < 8) && right.iter().all(|&v| v > 247), "{}: {row:?}", path.display());
        }
    }
}

#[test]
fn a_photograph_lies_as_its_camera_was_held() {
    // Black above, white below, 16x32.
    let picture = image::GrayImage::from_fn(16, 32, |_, y| image::Luma([if y < 16 { 0 } else { 255 }]));
    let jpeg = code(picture, image::ImageFormat::Jpeg);
    let turned = |orientation: u8| {
        let tiff =
            [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat();
        let exif = [b"Exif\0\0".as_slice(), &tiff].concat();
        let segment = [&[0xff, 0xe1], &((exif.len() + 2) as u16).to_be_bytes()[..], &exif].concat();
        pictures::decode(&[&jpeg[..2], &segment, &jpeg[2..]].concat(), "x").unwrap()
    };
    let (upright, head, right) = (turned(1), turned(3), turned(6));
    assert_eq!(
        [(upright.height, upright.width), (head.height, head.width), (right.height, right.width)],
        [(32, 16), (32, 16), (16, 32)]
    );
    assert!(upright.pixels[0] < 9 && upright.pixels[511] > 246);
    assert!(head.pixels[0] > 246 && head.pixels[511] < 9);
    // Turned clockwise, what was above is to the right.
    assert!(right.pixels[0] > 246 && right.pixels[31] < 9);
}

#[test]
fn huge_pictures_are_refused_before_memory_is_taken() {
    let says = |file: &[u8], parts: &[&str]| {
        let begun = Instant::now();
        assert_says(&pictures::decode(file, "x").unwrap_err().to_string(), parts);
        // Their pixels would take gigabytes; on a very busy machine little takes no time.
        assert!(begun.elapsed() < Duration::from_secs(10));
    };
    let claim = |size| raw_png(size, 8, 6, false, &[], &[0; 100]);
    says(&claim((60_000, 60_000)), &["x has 60000x60000 pixels", "16384 a side"]);
    says(&claim((16_000, 16_000)), &["16000x16000", "100 million"]);
    says(&claim((100_000_000, 1)), &["100000000x1"]);
    says(&claim((u32::MAX >> 1, 1)), &["x cannot be decoded", "limit"]);
    says(&claim((9_000, 9_000)), &["claims 9000x9000 pixels, more than its", "bytes can hold"]);
    let gif = [b"GIF89a".as_slice(), &[0, 60, 0, 60, 0, 0, 0, b',', 0, 0, 0, 0, 0, 60, 0, 60, 0, 2, 0, b';']].concat();
    says(&gif, &["15360x15360"]);
    let mut bmp = code(image::GrayImage::new(2, 2), image::ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&8_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&8_000u32.to_le_bytes());
    says(&bmp, &["claims 8000x8000"]);
}

// ---- Folders of pictures ----

/// A 12x12 picture of black ink on white paper, whose ink is `ink` pixels wide.
fn page(ink: u32) -> Vec<u8> {
    grey_png(12, 12, |x, y| if x < ink && y < 4 { 0 } else { 255 })
}

#[test]
fn a_folder_of_pictures_has_parts_and_classes() {
    let folder = tempdir().unwrap();
    let put = |path: &str, ink| write(folder.path(), path, &page(ink));
    put("train/b/1.png", 1);
    put("train/a/2.PNG", 2);
    put("train/a/deeper/3.png", 3);
    put("test/b/4.png", 4);
    put("test/c/5.png", 5);
    write(folder.path(), "train/a/.DS_Store", b"x");
    write(folder.path(), "train/a/._2.PNG", b"x");
    write(folder.path(), "train/notes.txt", b"x");
    write(folder.path(), "__MACOSX/train/a/2.png", b"x");
    let (set, notes) = read(&source("images", folder.path()), Options::new(12));
    assert_eq!(set.name, "images");
    assert_eq!(set.train.labels, Some(vec![0, 0, 1]));
    assert_eq!(set.test.labels, Some(vec![1, 2]));
    let width = |images: &Images, i| images.image(i)[..12].iter().filter(|&&v| v == 255).count();
    assert_eq!((0..3).map(|i| width(&set.train, i)).collect::<Vec<_>>(), [2, 3, 1]);
    assert_eq!((0..2).map(|i| width(&set.test, i)).collect::<Vec<_>>(), [4, 5]);
    // The same a folder further down, as archives are often unpacked.
    let wrapped = tempdir().unwrap();
    fs::create_dir(wrapped.path().join("data")).unwrap();
    for (path, ink) in [("train/b/1", 1), ("train/a/2", 2), ("train/a/deeper/3", 3), ("test/b/4", 4), ("test/c/5", 5)] {
        write(wrapped.path(), &format!("data/{path}.png"), &page(ink));
    }
    let (below, notes_below) = read(&source("images", wrapped.path()), Options::new(12));
    assert_eq!(below, set);
    assert!(notes_below[0].starts_with("The pictures are in ") && notes_below[0].ends_with("data."), "{notes_below:?}");
    // Dark ink was made bright, and that was said, once.
    assert!(notes.len() == 1 && notes[0].contains("inverted") && notes[0].contains("--invert no"), "{notes:?}");
    let invert = |invert| read(&source("images", folder.path()), Options { invert, ..Options::new(12) });
    let (as_is, notes) = invert(Invert::No);
    assert_eq!(as_is.train.pixels, set.train.pixels.iter().map(|v| 255 - v).collect::<Vec<_>>());
    assert_says(&notes.concat(), &["bright on average", "--invert yes"]);
    assert_eq!(invert(Invert::Yes), (set, vec![]));
}

#[test]
fn pictures_without_parts_are_split_the_same_way_every_time() {
    let folder = tempdir().unwrap();
    for (class, ink) in [("9", 2), ("10", 3), ("1", 1)] {
        (1..=7).for_each(|i| write(folder.path(), &format!("{class}/{i}.png"), &page(ink)));
    }
    let (set, notes) = read(&source("images", folder.path()), Options::new(12));
    assert_eq!((set.train.len(), set.test.len()), (18, 3));
    // The classes are in the order of their numbers.
    for part in [&set.train, &set.test] {
        let ink = |i| part.image(i)[..12].iter().filter(|&&v| v == 255).count();
        let labels = part.labels.as_ref().unwrap();
        assert!(labels.iter().enumerate().all(|(i, &label)| ink(i) == usize::from(label) + 1));
    }
    assert!(
        notes.iter().any(|note| note.contains("3 of its 21 pictures") && note.contains("kept for testing")),
        "{notes:?}"
    );
    assert_eq!(read(&source("images", folder.path()), Options::new(12)).0, set);
    // Without classes there are no labels. A folder `train` beside others is a class like them.
    let loose = tempdir().unwrap();
    (1..=4).for_each(|i| write(loose.path(), &format!("{i}.png"), &page(i)));
    assert_eq!(read(&source("images", loose.path()), Options::new(12)).0.train.labels, None);
    (1..=4).for_each(|i| write(loose.path(), &format!("train/{i}.png"), &page(i)));
    (1..=4).for_each(|i| write(loose.path(), &format!("car/{i}.png"), &page(i)));
    assert_eq!(read(&source("images", loose.path()), Options::new(12)).0.train.len(), 10);
}

#[test]
fn one_picture_is_read_as_many_are() {
    let folder = tempdir().unwrap();
    write(folder.path(), "wide.png", &grey_png(60, 40, |x, _| if x < 6 { 0 } else { 255 }));
    let (path, watch) = (folder.path().join("wide.png"), Watch::new());
    let picture = read_picture(&path, &Options::new(30), &watch).unwrap();
    assert_eq!((picture.len(), picture.labels.clone()), (1, None));
    let row = |i: usize| &picture.image(0)[30 * i..30 * (i + 1)];
    assert_eq!((row(4), row(25)), (&[0; 30][..], &[0; 30][..]), "black above and below");
    assert_eq!((row(15)[0], row(15)[10]), (255, 0));
    assert!(watch.notes().iter().any(|note| note.contains("60x40")), "{:?}", watch.notes());
    let (set, _) = read(&source("images", &path), Options::new(30));
    assert_eq!((&set.train, &set.test), (&picture, &picture));
    assert_says(
        &read_picture(&folder.path().join("none.png"), &Options::new(30), &Silent).unwrap_err().to_string(),
        &["none.png"],
    );
    // The advice for a folder of one picture is to name it: that works, as just shown.
    assert_says(&complaint("images", folder.path()), &["holds one picture", &format!("images:{}", path.display())]);
}

#[test]
fn folders_without_readable_pictures_say_what_to_do() {
    let folder = tempdir().unwrap();
    assert_says(&complaint("images", &folder.path().join("none")), &["does not exist", "name a folder of pictures"]);
    assert_says(&complaint("images", folder.path()), &["holds no PNG, JPEG, GIF or BMP"]);
    write(folder.path(), "a.webp", b"RIFF");
    write(folder.path(), "b.HEIC", b"x");
    assert_says(&complaint("images", folder.path()), &["end in .heic, .webp cannot be read, convert them to PNG"]);
    write(folder.path(), "train-images-idx3-ubyte", &ink_file());
    assert_says(&complaint("images", folder.path()), &["idx:FOLDER"]);
    (1..=4).for_each(|i| write(folder.path(), &format!("{i}.png"), &page(i)));
    let (_, notes) = read(&source("images", folder.path()), Options::new(12));
    assert!(notes.iter().any(|note| note.contains(".heic, .webp")), "{notes:?}");
    // Bad ones are counted, and when they are gone all is well.
    write(folder.path(), "5.png", b"<html>");
    write(folder.path(), "6.png", &page(6)[..60]);
    write(folder.path(), "7.png", b"");
    assert_says(
        &complaint("images", folder.path()),
        &["5.png is not a PNG", "but a web page", "and 2 more of 7", "take it away"],
    );
    fs::remove_file(folder.path().join("5.png")).unwrap();
    assert_says(&complaint("images", folder.path()), &["6.png cannot be decoded", "and 1 more of 6"]);
    fs::remove_file(folder.path().join("6.png")).unwrap();
    assert_says(
        &complaint("images", folder.path()),
        &["7.png is not a PNG, JPEG, GIF or BMP picture but an empty file: replace"],
    );
    write(folder.path(), "7.png", &page(3));
    read(&source("images", folder.path()), Options::new(12));
    // A part without a picture, and what to do about it.
    fs::create_dir_all(folder.path().join("train")).unwrap();
    write(folder.path(), "test/1.png", &page(1));
    assert_says(
        &complaint("images", folder.path()),
        &["train holds no PNG", "put some into it, or take the folder away"],
    );
    fs::remove_dir(folder.path().join("train")).unwrap();
    read(&source("images", folder.path()), Options::new(12));
    // A JPEG that is called .png is one.
    write(folder.path(), "7.png", &code(image::GrayImage::new(12, 12), image::ImageFormat::Jpeg));
    read(&source("images", folder.path()), Options::new(12));
    assert_says(&"./src".parse::<Source>().unwrap_err().to_string(), &["`./src` is not a data source", "images:./src"]);
}

// ---- Shapes ----

#[test]
fn shapes_are_kept_unless_asked_otherwise() {
    // 2 rows, 4 columns: 0 1 2 3 times 50.
    let folder = tempdir().unwrap();
    let image: Vec<u8> = [[0, 50, 100, 150]; 2].concat();
    for part in ["train", "test"] {
        write(
            folder.path(),
            &format!("{part}-images.idx"),
            &idx_file(&[3, 2, 4], &[&image[..], &image, &image].concat()),
        );
    }
    let fitted = |fit| {
        let (set, notes) = read(&source("idx", folder.path()), Options { fit, ..Options::new(4) });
        let notes: Vec<String> = notes.into_iter().filter(|note| note.contains("4x2")).collect();
        assert_eq!(notes.len(), 1, "once: {notes:?}");
        (set.test.image(0).to_vec(), notes.concat())
    };
    let (padded, said) = fitted(Fit::Pad);
    assert_eq!(padded, [[0; 4], [0, 50, 100, 150], [0, 50, 100, 150], [0; 4]].concat());
    assert_says(&said, &["padded with black", "--fit crop"]);
    let (cropped, said) = fitted(Fit::Crop);
    assert_eq!((cropped[0], cropped[3]), (50, 100));
    assert_says(&said, &["cropped"]);
    let (stretched, said) = fitted(Fit::Stretch);
    assert_eq!(stretched, [[0, 50, 100, 150]; 4].concat());
    assert_says(&said, &["stretched"]);
    assert_eq!(Fit::default(), Fit::Pad);
}

#[test]
fn extreme_shapes_keep_at_least_one_row_of_pixels() {
    for (height, width) in [(1, 100), (100, 1), (2, 3), (99, 100), (1, 1)] {
        for fit in [Fit::Pad, Fit::Crop, Fit::Stretch] {
            let out = fit.square(&vec![255; 2 * height * width], height, width, 10);
            assert_eq!(out.len(), 200);
            assert!(out.chunks(100).all(|image| image.contains(&255)), "{height}x{width} {fit:?}");
        }
    }
    let narrow = Fit::Pad.square(&[255; 100], 100, 1, 10);
    assert_eq!(narrow.iter().filter(|&&v| v == 255).count(), 10, "one column");
}

// ---- Plausible but wrong ----

#[test]
fn data_that_are_plausible_but_wrong_get_one_line() {
    let said = |pixels: &[u8]| {
        let folder = tempdir().unwrap();
        let file = idx_file(&[2, 8, 8], pixels);
        ["train", "t10k"].iter().for_each(|part| write(folder.path(), &format!("{part}-images"), &file));
        let notes = read(&source("idx", folder.path()), Options::new(8)).1;
        assert!(notes.len() <= 1, "{notes:?}");
        notes.concat()
    };
    assert_eq!(said(&ink()), "");
    let changed = |f: &dyn Fn(u8) -> u8| ink().into_iter().map(f).collect::<Vec<u8>>();
    assert_says(&said(&changed(&|v| v / 255)), &["above 1 of 255", "masks of 0 and 1", "multiply them by 255"]);
    assert_says(&said(&changed(&|v| 255 - v)), &["bright on average", "0.81", "--invert yes"]);
    assert_says(&said(&changed(&|v| v / 16)), &["very dark", "15 of 255"]);
    assert_says(&said(&[0; 128]), &["black throughout"]);
    // The advice, followed.
    let folder = tempdir().unwrap();
    let file = idx_file(&[2, 8, 8], &changed(&|v| 255 - v));
    ["train", "t10k"].iter().for_each(|part| write(folder.path(), &format!("{part}-images"), &file));
    let (set, notes) = read(&source("idx", folder.path()), Options { invert: Invert::Yes, ..Options::new(8) });
    assert_eq!((set.train.pixels, notes), (ink(), vec![]));
    // A chess board is as bright as dark, and one white image among black ones is no photograph of paper: nothing is said of them.
    assert_eq!(said(&(0..128).map(|i| if (i + i / 8) % 2 == 0 { 255 } else { 0 }).collect::<Vec<u8>>()), "");
    assert_eq!(said(&[&[255; 20][..], &[0; 40], &[7; 4], &ink()[..64]].concat()), "");
    // Neither are numbers from 0 to 64, as of an old scanner; just below, they are very dark.
    assert_eq!(said(&changed(&|v| v / 3)), "");
    assert_says(&said(&changed(&|v| if v > 0 { 63 } else { 0 })), &["very dark", "63 of 255"]);
    assert_says(&said(&[9; 128]), &["very dark", "9 of 255"]);
    // One part alone is named.
    let folder = tempdir().unwrap();
    write(folder.path(), "train-images", &ink_file());
    write(folder.path(), "test-images", &idx_file(&[2, 8, 8], &changed(&|v| 255 - v)));
    let notes = read(&source("idx", folder.path()), Options::new(8)).1;
    assert_eq!(notes.len(), 1);
    assert_says(&notes[0], &["The test set of idx is bright on average"]);
    let half_empty = [&ink()[..64], &[0; 64]].concat();
    assert_says(&said(&half_empty), &["1 images of 2 that show nothing"]);
}

// ---- Files, not names; words, not substrings ----

#[test]
fn folders_named_like_files_are_passed_over() {
    // The archive of a well-known site: beside each file a folder with the other spelling of its name.
    let folder = tempdir().unwrap();
    let labels = idx_file(&[2], &[0, 1]);
    for part in ["train", "t10k"] {
        for (kind, rank, file) in [("images", 3, &ink_file()), ("labels", 1, &labels)] {
            write(folder.path(), &format!("{part}-{kind}.idx{rank}-ubyte"), file);
            write(folder.path(), &format!("{part}-{kind}-idx{rank}-ubyte/{part}-{kind}-idx{rank}-ubyte"), file);
        }
    }
    for set in ["mnist", "kmnist", "idx"] {
        assert_eq!(load(&source(set, folder.path()), 8).unwrap().train.pixels, ink(), "{set}");
    }
    // As folders of the names of other files too.
    let folder = tempdir().unwrap();
    fs::create_dir_all(folder.path().join("old.npy")).unwrap();
    fs::create_dir_all(folder.path().join("images_background.zip")).unwrap();
    assert_says(&complaint("quickdraw", folder.path()), &["neither CATEGORY.npy"]);
    assert_says(&complaint("omniglot", folder.path()), &["neither images_background.zip"]);
}

#[test]
fn names_are_read_by_their_words() {
    let folder = tempdir().unwrap();
    let put = |name: &str, value: u8| write(folder.path(), name, &idx_file(&[1, 1, 1], &[value]));
    let labels = |name: &str, value: u8| write(folder.path(), name, &idx_file(&[1], &[value]));
    put("latest-train-images", 1);
    put("latest-test-images", 2);
    labels("latest-train-images-labels", 7);
    let set = load(&source("idx", folder.path()), 1).unwrap();
    assert_eq!((set.train.pixels, set.test.pixels, set.train.labels), (vec![1], vec![2], Some(vec![7])));
    // None of these is one of the files.
    for name in [
        "latest-train-images.partial",
        "latest-train-images.gz.replaced",
        "latest-train-images.md5",
        "latest-train-images.txt",
        "latest-train-images~",
        ".latest-train-images.swp",
        "imagestrain",
        "contest-images",
        "restrained-images",
    ] {
        write(folder.path(), name, b"something else");
    }
    assert_eq!(load(&source("idx", folder.path()), 1).unwrap().train.pixels, [1]);
    let others = tempdir().unwrap();
    let put = |name: &str, value: u8| write(others.path(), name, &idx_file(&[1, 1, 1], &[value]));
    put("TestDrive_TrainingImages.idx", 3);
    put("TestDrive_T10k Images (1).idx", 4);
    let set = load(&source("idx", others.path()), 1).unwrap();
    assert_eq!((set.train.pixels, set.test.pixels), (vec![3], vec![4]));
}

#[test]
fn two_files_for_one_role_are_both_named_and_the_advice_works() {
    let folder = tempdir().unwrap();
    let put = |name: &str, value: u8| write(folder.path(), name, &idx_file(&[1, 1, 1], &[value]));
    put("a-train-images", 1);
    put("b-train-images", 2);
    let said = complaint("idx", folder.path());
    assert_says(
        &said,
        &[
            "2 files of training images",
            "a-train-images and b-train-images",
            "words train and images",
            "words test and images",
        ],
    );
    // Followed: one gets the word test instead.
    fs::rename(folder.path().join("b-train-images"), folder.path().join("b-test-images")).unwrap();
    let set = load(&source("idx", folder.path()), 1).unwrap();
    assert_eq!((set.train.pixels, set.test.pixels), (vec![1], vec![2]));
    // The same file twice, packed and unpacked or spelled in two ways, is no contradiction.
    write(folder.path(), "a.train.images.gz", &gz(&idx_file(&[1, 1, 1], &[9])));
    assert_eq!(load(&source("idx", folder.path()), 1).unwrap().train.pixels, [1]);
}

#[test]
fn files_are_found_two_folders_down_and_the_folder_is_named() {
    for below in ["raw", "MNIST/raw"] {
        let folder = tempdir().unwrap();
        let at = folder.path().join(below);
        let labels = idx_file(&[2], &[0, 1]);
        for part in ["train", "t10k"] {
            write(&at, &format!("{part}-images-idx3-ubyte"), &ink_file());
            write(&at, &format!("{part}-labels-idx1-ubyte"), &labels);
        }
        for word in ["mnist", "idx"] {
            let (set, notes) = read(&source(word, folder.path()), Options::new(8));
            assert_eq!(set.train.pixels, ink());
            assert_eq!(notes, [format!("The files of {word} are in {}.", at.display())]);
        }
        // In two places: which one, the user must say, and can.
        let second = folder.path().join(below).with_file_name("second");
        fs::create_dir_all(&second).unwrap();
        fs::read_dir(&at).unwrap().for_each(|file| {
            let file = file.unwrap();
            fs::copy(file.path(), second.join(file.file_name())).unwrap();
        });
        assert_says(&complaint("mnist", folder.path()), &["2 times", "raw", "second", "name one of these folders"]);
        assert_eq!(load(&source("mnist", &second), 8).unwrap().train.pixels, ink());
    }
    let folder = tempdir().unwrap();
    write(folder.path(), "omniglot/python/images_background.zip", b"x");
    // Not all of the set is there: nothing is guessed.
    assert_says(&complaint("omniglot", folder.path()), &["neither images_background.zip"]);
}

#[test]
fn a_damaged_file_of_ones_own_is_to_be_replaced_and_then_all_is_well() {
    let folder = tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(folder.path(), name, bytes);
    put("test-images", &ink_file());
    for (damaged, what) in [
        (&ink_file()[..50], "the header promises 128 bytes of images"),
        (b"", "an empty file"),
        (b"<html>", "a web page"),
        (&gz(&ink_file())[..20], "cut off"),
        (&idx_file(&[2, 4, 4, 4], &ink()), "4 dimensions"),
    ] {
        put("train-images", damaged);
        assert_says(&complaint("idx", folder.path()), &["train-images", what, "put a right file in its place"]);
    }
    put("train-images", &ink_file());
    put("train-labels", &idx_file(&[3], &[1, 2, 3]));
    assert_says(
        &complaint("idx", folder.path()),
        &["2 images", "3 labels", "put the files in their places that belong together"],
    );
    put("train-labels", &idx_file(&[2], &[1, 2]));
    assert_eq!(load(&source("idx", folder.path()), 8).unwrap().train.labels, Some(vec![1, 2]));
    // Sizes: what is offered works.
    for (side, works) in [(0, false), (1, true), (2048, true), (2049, false)] {
        let result = load(&source("idx", folder.path()), side);
        assert_eq!(result.is_ok(), works);
        result.err().iter().for_each(|e| assert_says(&e.to_string(), &["use 1 to 2048"]));
    }
    // A folder where a picture is looked for, and the other way round.
    put("drawing.png", &page(3));
    let (train, test) = (folder.path().join("train-images"), folder.path().join("test-images"));
    fs::remove_file(train).unwrap();
    fs::remove_file(test).unwrap();
    assert_says(
        &complaint("idx", folder.path()),
        &["words train and images", "its pictures are read with images:FOLDER"],
    );
}

#[cfg(unix)]
#[test]
fn links_to_files_are_files_and_links_to_nothing_are_not() {
    use std::os::unix::fs::symlink;
    let (folder, elsewhere) = (tempdir().unwrap(), tempdir().unwrap());
    write(elsewhere.path(), "blob-1", &ink_file());
    symlink(elsewhere.path().join("blob-1"), folder.path().join("train-images")).unwrap();
    symlink(elsewhere.path().join("blob-1"), folder.path().join("test-images")).unwrap();
    symlink("nothing", folder.path().join("old-train-images")).unwrap();
    symlink(folder.path(), folder.path().join("round")).unwrap();
    assert_eq!(load(&source("idx", folder.path()), 8).unwrap().train.pixels, ink());
    let pictures = tempdir().unwrap();
    (1..=3).for_each(|i| write(elsewhere.path(), &format!("{i}.png"), &page(i)));
    symlink(elsewhere.path(), pictures.path().join("class")).unwrap();
    symlink(pictures.path(), pictures.path().join("class2")).unwrap();
    symlink("nothing.png", pictures.path().join("broken.png")).unwrap();
    assert!(load(&source("images", pictures.path()), 8).is_ok());
}

// ---- Archives and files as other tools write them ----

/// IDX bytes of one image, and the same packed as various programs do.
#[test]
fn gzip_as_other_tools_write_it() {
    let whole = ink_file();
    let (first, second) = whole.split_at(50);
    let named = |builder: GzBuilder| {
        let mut out = builder.write(Vec::new(), Compression::best());
        out.write_all(&whole).unwrap();
        out.finish().unwrap()
    };
    let with_header_checksum = {
        let mut file = named(GzBuilder::new());
        file[3] |= 2;
        let mut crc = Crc::new();
        crc.update(&file[..10]);
        file.splice(10..10, (crc.sum() as u16).to_le_bytes());
        file
    };
    let stored = {
        let mut out = GzEncoder::new(Vec::new(), Compression::none());
        out.write_all(&whole).unwrap();
        out.finish().unwrap()
    };
    for (name, file) in [
        ("two members (cat, pigz, bgzip)", [gz(first), gz(second)].concat()),
        ("an empty member in the middle (bgzip ends with one)", [gz(first), gz(b""), gz(second), gz(b"")].concat()),
        ("zeros behind (tapes, some archives)", [gz(&whole), vec![0; 512]].concat()),
        ("zeros behind two members", [gz(first), gz(second), vec![0; 3]].concat()),
        ("a file name (gzip)", named(GzBuilder::new().filename("train-images-idx3-ubyte").mtime(1))),
        ("a comment", named(GzBuilder::new().comment("made by hand"))),
        ("an extra field (bgzip, dictzip)", named(GzBuilder::new().extra(&b"BC\x02\0\x01\x02"[..]))),
        ("all of them", named(GzBuilder::new().filename("a").comment("b").extra(&b"XY\0\0"[..]))),
        ("a checksum of the header", with_header_checksum),
        ("stored, not compressed", stored),
    ] {
        let images = idx::images(&file, "x").unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(images.pixels, ink(), "{name}");
    }
    let says = |file: &[u8], part: &str| assert_says(&idx::images(file, "x").unwrap_err().to_string(), &[part]);
    says(&[gz(&whole), b"garbage".to_vec()].concat(), "cannot be unpacked");
    says(&gz(&gz(&whole)), "not an IDX file but a gzip file");
    says(&gz(b"<!DOCTYPE html>"), "but a web page");
}

#[test]
fn idx_as_other_tools_write_it() {
    let pixels =
        |sizes: &[u32]| idx::images(&idx_file(sizes, &ink()), "x").map(|grey| (grey.height, grey.width, grey.pixels));
    for sizes in [&[2, 8, 8][..], &[2, 8, 8, 1], &[2, 1, 8, 8], &[2, 1, 8, 8, 1]] {
        assert_eq!(pixels(sizes).unwrap(), (8, 8, ink()), "{sizes:?}");
    }
    // Sizes of 1 that mean something stay.
    assert_eq!(pixels(&[128, 1, 1]).unwrap().0, 1);
    assert_eq!(pixels(&[1, 1, 128]).unwrap().1, 128);
    assert_says(&pixels(&[1, 8, 8, 2]).unwrap_err().to_string(), &["4 dimensions, [1, 8, 8, 2]"]);
    assert_eq!(idx::labels(&idx_file(&[3, 1], &[1, 2, 3]), "x").unwrap(), [1, 2, 3]);
    for (file, what) in [
        (&b""[..], "an empty file"),
        (b"\n<!doctype html><html>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "what a server answers"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x93NUMPY\x01\0", "a NumPy file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"404: Not Found", "a text"),
    ] {
        assert_says(&idx::images(file, "x").unwrap_err().to_string(), &["x: not an IDX file but", what]);
    }
}

fn npy_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\0".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// Three drawings with the values `i + k` of pixel `k` of drawing `i`, below 200.
fn drawing_value(i: usize, k: usize) -> u8 {
    ((7 * i + k) % 200) as u8
}

#[test]
fn numpy_files_as_other_tools_write_them() {
    let values: Vec<u8> = (0..3 * 784).map(|n| drawing_value(n / 784, n % 784)).collect();
    let by_columns: Vec<u8> = (0..784 * 3).map(|n| drawing_value(n % 3, n / 3)).collect();
    // (count, 28, 28) by columns: the first index runs fastest, the last slowest.
    let by_columns_3d: Vec<u8> = (0..784 * 3).map(|n| drawing_value(n % 3, n / 3 % 28 * 28 + n / 84)).collect();
    let wide = |f: &dyn Fn(u8) -> Vec<u8>| values.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>();
    let head = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n")
    };
    let c = |descr: &str| head(descr, "False", "(3, 784)");
    let mut version_2 = npy_file(&c("|u1"), &[]);
    version_2[6] = 2;
    version_2.splice(10..10, [0, 0]);
    version_2.extend(&values);
    let mut version_3 = version_2.clone();
    version_3[6] = 3;
    for (name, file) in [
        ("version 1", npy_file(&c("|u1"), &values)),
        ("version 2", version_2),
        ("version 3", version_3),
        ("three dimensions", npy_file(&head("|u1", "False", "(3, 28, 28)"), &values)),
        ("a channel behind", npy_file(&head("|u1", "False", "(3, 28, 28, 1)"), &values)),
        ("a channel in front", npy_file(&head("|u1", "False", "(3, 1, 28, 28)"), &values)),
        ("long integers of Python 2", npy_file(&head("|u1", "False", "(3L, 784L)"), &values)),
        (
            "double quotes and another order",
            npy_file("{\"shape\": (3,784), \"fortran_order\": False, \"descr\": \"<u1\"}", &values),
        ),
        ("by columns", npy_file(&head("|u1", "True", "(3, 784)"), &by_columns)),
        ("by columns, three dimensions", npy_file(&head("|u1", "True", "(3, 28, 28)"), &by_columns_3d)),
        ("two bytes, low first", npy_file(&c("<u2"), &wide(&|v| vec![v, 0]))),
        ("two bytes, high first", npy_file(&c(">u2"), &wide(&|v| vec![0, v]))),
        ("signed, four bytes", npy_file(&c("<i4"), &wide(&|v| i32::from(v).to_le_bytes().into()))),
        ("signed, eight bytes, high first", npy_file(&c(">i8"), &wide(&|v| i64::from(v).to_be_bytes().into()))),
        ("single precision", npy_file(&c("<f4"), &wide(&|v| (f32::from(v) / 255.0).to_le_bytes().into()))),
        ("double precision, high first", npy_file(&c(">f8"), &wide(&|v| (f64::from(v) / 255.0).to_be_bytes().into()))),
        ("a second array behind", [npy_file(&c("|u1"), &values), npy_file(&c("|u1"), &values)].concat()),
    ] {
        let mut bitmaps = npy::Bitmaps::open(Cursor::new(file), "x").unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(bitmaps.count(), 3, "{name}");
        for i in [2, 0, 1] {
            let mut pixels = Vec::new();
            bitmaps.read(i, &mut pixels).unwrap();
            assert_eq!(pixels, &values[784 * i..784 * (i + 1)], "{name}, drawing {i}");
        }
    }
    // Booleans and half precision: 0, 1/2, 1, and the smallest number above 0.
    let one = |descr: &str, data: &[u8]| {
        let shape = "(1, 784)";
        let mut bitmaps = npy::Bitmaps::open(Cursor::new(npy_file(&head(descr, "False", shape), data)), "x").unwrap();
        let mut pixels = Vec::new();
        bitmaps.read(0, &mut pixels).map(|()| pixels[..4].to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(one("|b1", &[&[0, 1, 1, 0][..], &[0; 780]].concat()), Ok(vec![0, 255, 255, 0]));
    assert_eq!(one("<f2", &[&[0, 0, 0, 0x38, 0, 0x3c, 1, 0][..], &[0; 1560]].concat()), Ok(vec![0, 128, 255, 0]));
    assert_says(&one("<f2", &[&[0, 0x7e][..], &[0; 1566]].concat()).unwrap_err(), &["drawing 0", "NaN", "0 to 1"]);
    assert_says(&one("|i1", &[255; 784]).unwrap_err(), &["value -1", "0 to 255"]);
    assert_says(&one("<u2", &[1; 1568]).unwrap_err(), &["value 257", "0 to 255"]);
}

/// One entry of a hand-made zip: name, flags, method, version made by, extra field.
fn raw_zip(entries: &[(&[u8], u16, &[u8])], in_front: &[u8], comment: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (in_front.to_vec(), Vec::new());
    for &(name, flags, data) in entries {
        let mut crc = Crc::new();
        crc.update(data);
        let at = (file.len()) as u32;
        let mut common = Vec::new();
        common.extend([20, 0]);
        common.extend(flags.to_le_bytes());
        common.extend([0; 6]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name);
        file.extend(data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name);
    }
    let (at, size, count) = (file.len() as u32, directory.len() as u32, entries.len() as u16);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend(size.to_le_bytes());
    file.extend(at.to_le_bytes());
    file.extend((comment.len() as u16).to_le_bytes());
    file.extend(comment);
    file
}

#[test]
fn zips_as_other_tools_write_them() {
    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};
    let drawing = png(28, 5);
    let path = "images_background/Own/character01/01.png";
    let through = |options: SimpleFileOptions| {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.add_directory("images_background/Own/", options).unwrap();
        zip.start_file(path, options).unwrap();
        zip.write_all(&drawing).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let streamed = {
        let mut zip = ZipWriter::new_stream(Vec::new());
        zip.start_file(path, SimpleFileOptions::default()).unwrap();
        zip.write_all(&drawing).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let raw = |name: &str| raw_zip(&[(name.as_bytes(), 0, &drawing)], b"", b"");
    let plain = SimpleFileOptions::default();
    for (name, file) in [
        ("deflated", through(plain)),
        ("stored", through(plain.compression_method(CompressionMethod::Stored))),
        ("with the sizes of zip64", through(plain.large_file(true))),
        ("streamed, with data descriptors", streamed),
        ("with \\ (PowerShell)", raw(&path.replace('/', "\\"))),
        ("with both", raw("images_background\\Own/character01\\01.png")),
        ("with ./ (find | zip)", raw(&format!("./{path}"))),
        ("with / in front", raw(&format!("/{path}"))),
        ("with // inside", raw(&path.replace('/', "//"))),
        (
            "with entries that have no name",
            raw_zip(&[(path.as_bytes(), 0, &drawing), (b"", 0, b"x"), (b"//", 0, b""), (b"./", 0, b"")], b"", b""),
        ),
        ("with a comment", raw_zip(&[(path.as_bytes(), 0, &drawing)], b"", b"made by hand")),
        ("with a program in front (self-extracting)", raw_zip(&[(path.as_bytes(), 0, &drawing)], b"MZ program", b"")),
        (
            "with a Macintosh's leavings",
            raw_zip(
                &[
                    (path.as_bytes(), 0, &drawing),
                    (b"__MACOSX/images_background/Own/character01/._01.png", 0, b"resource"),
                    (b"__MACOSX/images_background/Own/character01/01.png", 0, b"resource"),
                    (b"images_background/.DS_Store", 0, b"x"),
                ],
                b"",
                b"",
            ),
        ),
    ] {
        let tree = omniglot::unzip(&file, "x").unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tree.keys().collect::<Vec<_>>(), [path], "{name}");
        assert_eq!(tree[path], drawing, "{name}");
        assert_eq!(omniglot::characters(&tree, "x", 28).unwrap().len(), 1, "{name}");
    }
    // Names in UTF-8 (flag 11) and in the old code page, where 0x82 is é.
    for (name, flags) in [("Hébreu".as_bytes(), 1 << 11), (b"H\x82breu", 0)] {
        let name = [b"images_background/".as_slice(), name, b"/character01/01.png"].concat();
        let tree = omniglot::unzip(&raw_zip(&[(&name, flags, &drawing)], b"", b""), "x").unwrap();
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["images_background/Hébreu/character01/01.png"]);
    }
    // Protected by a password: said, not misread.
    let locked = raw_zip(&[(path.as_bytes(), 1, &drawing)], b"", b"");
    assert_says(
        &omniglot::unzip(&locked, "x").unwrap_err().to_string().to_lowercase(),
        &["01.png cannot be unpacked", "password"],
    );
}

#[test]
fn omniglot_zipped_with_backslashes_equals_omniglot() {
    let (with, without) = (tempdir().unwrap(), tempdir().unwrap());
    for root in ["images_background", "images_evaluation"] {
        let drawings: Vec<_> = characters(root).into_iter().filter(|(path, _)| !path.contains("._")).collect();
        write(without.path(), &format!("{root}.zip"), &zip_file(&drawings));
        let entries: Vec<(Vec<u8>, Vec<u8>)> =
            drawings.into_iter().map(|(path, png)| (path.replace('/', "\\").into_bytes(), png)).collect();
        let entries: Vec<(&[u8], u16, &[u8])> = entries.iter().map(|(name, png)| (&name[..], 0, &png[..])).collect();
        write(with.path(), &format!("{root}.zip"), &raw_zip(&entries, b"", b""));
    }
    assert_eq!(
        load(&source("omniglot", with.path()), 28).unwrap(),
        load(&source("omniglot", without.path()), 28).unwrap()
    );
}

// ---- Paths that are not UTF-8 ----

#[cfg(unix)]
fn latin1(text: &[u8]) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(text.to_vec())
}

#[cfg(unix)]
fn source_at(word: &str, folder: &Path) -> Source {
    let mut text = OsString::from(format!("{word}:"));
    text.push(folder);
    Source::try_from(text).unwrap()
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_opened_as_they_are() {
    let folder = tempdir().unwrap();
    let root = folder.path().join(latin1(b"donn\xe9es"));
    for word in ["idx", "mnist", "quickdraw", "omniglot", "images"] {
        fs::create_dir_all(root.join(word)).unwrap();
    }
    let put = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put(&root.join("idx/t10k-images"), &ink_file());
    put(&root.join("idx").join(latin1(b"train-images-\xe9t\xe9")), &ink_file());
    assert_eq!(load(&source_at("idx", &root.join("idx")), 8).unwrap().train.pixels, ink());

    for part in ["train", "t10k"] {
        put(&root.join("mnist").join(latin1(b"b\xe9ta")).join(format!("{part}-images-idx3-ubyte")), &ink_file());
        put(
            &root.join("mnist").join(latin1(b"b\xe9ta")).join(format!("{part}-labels-idx1-ubyte")),
            &idx_file(&[2], &[0, 1]),
        );
    }
    assert_eq!(load(&source_at("mnist", &root.join("mnist")), 8).unwrap().train.pixels, ink());

    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (9, 784), }\n";
    put(&root.join("quickdraw").join(latin1(b"\xe9toile.npy")), &npy_file(header, &[7; 9 * 784]));
    assert_eq!(load(&source_at("quickdraw", &root.join("quickdraw")), 28).unwrap().train.len(), 8);

    // Two alphabets whose names look alike stay two.
    for stem in ["images_background", "images_evaluation"] {
        for alphabet in [&b"Gr\xe9c"[..], b"Gr\xe8c"] {
            put(&root.join("omniglot").join(stem).join(latin1(alphabet)).join("character01/01.png"), &png(28, 5));
        }
    }
    assert_eq!(load(&source_at("omniglot", &root.join("omniglot")), 8).unwrap().train.labels, Some(vec![0, 1]));

    for class in [&b"\xe9t\xe9"[..], b"\xe8t\xe8"] {
        (1..=3).for_each(|i| {
            put(
                &root.join("images").join(latin1(class)).join(latin1(b"d\xe9ssin")).with_extension(format!("{i}.png")),
                &page(i),
            )
        });
    }
    let set = load(&source_at("images", &root.join("images")), 8).unwrap();
    assert_eq!([set.train.labels.unwrap(), set.test.labels.unwrap()].concat().iter().max(), Some(&1));

    // A sentence shows what can be shown.
    let missing = load(&source_at("idx", &root.join("nowhere")), 8).unwrap_err().to_string();
    assert_says(&missing, &["donn\u{fffd}es/nowhere does not exist"]);
}

#[cfg(unix)]
#[test]
fn a_source_is_stored_without_loss() {
    for text in [
        &b"idx:/tmp/donn\xe9es"[..],
        b"images:\xff\xfe",
        b"mnist:/a b/c",
        b"synthetic",
        "omniglot:/donn\u{e9}es".as_bytes(),
    ] {
        let source = Source::try_from(latin1(text)).unwrap();
        assert_eq!(source.to_os_string(), latin1(text));
        let stored = serde_json::to_string(&source).unwrap();
        assert_eq!(serde_json::from_str::<Source>(&stored).unwrap(), source, "{stored}");
        let value = serde_json::to_value(&source).unwrap();
        assert_eq!(serde_json::from_value::<Source>(value).unwrap(), source);
    }
    // As checkpoints have always held it.
    let old: Source = serde_json::from_str("\"mnist:/data/mnist\"").unwrap();
    assert_eq!(serde_json::to_string(&old).unwrap(), "\"mnist:/data/mnist\"");
    for bad in ["[109, 700]", "\"cifar\"", "7", "{}"] {
        assert!(serde_json::from_str::<Source>(bad).is_err(), "{bad}");
    }
    let relative: Source = "images:some/folder".parse().unwrap();
    let absolute = relative.absolute().unwrap();
    assert!(absolute.folder().unwrap().is_absolute() && absolute.folder().unwrap().ends_with("some/folder"));
    assert_eq!(absolute.word(), "images");
}

// ---- Stopping ----

#[test]
fn loading_stops_within_a_second_of_being_asked() {
    let stopped = |source: &Source, units: u64| {
        let (watch, begun) = (Watch::until(units), Instant::now());
        let result = load_or_fetch(source, &Options::new(28), &watch);
        assert!(matches!(result, Err(Error::Stopped)), "{source}: {:?}", result.map(|set| set.train.len()));
        begun.elapsed()
    };
    // 70,000 drawings take far longer.
    assert!(stopped(&Source::Synthetic, 1000) < Duration::from_secs(5));
    let folder = tempdir().unwrap();
    (1..=30).for_each(|i| write(folder.path(), &format!("{i}.png"), &page(i % 9)));
    for part in ["train", "t10k"] {
        write(folder.path(), &format!("{part}-images-idx3-ubyte"), &ink_file());
        write(folder.path(), &format!("{part}-labels-idx1-ubyte"), &idx_file(&[2], &[0, 1]));
    }
    for root in ["images_background", "images_evaluation"] {
        write(folder.path(), &format!("{root}.zip"), &zip_file(&characters(root)[..6]));
    }
    stopped(&source("images", folder.path()), 5);
    stopped(&source("omniglot", folder.path()), 2);
    for word in ["images", "omniglot", "mnist", "idx"] {
        stopped(&source(word, folder.path()), 0);
    }
}

#[test]
fn progress_is_told_in_full() {
    let folder = tempdir().unwrap();
    (1..=30).for_each(|i| write(folder.path(), &format!("{i}.png"), &page(i % 9)));
    let watch = Watch::until(1000);
    load_or_fetch(&source("images", folder.path()), &Options::new(8), &watch).unwrap();
    assert_eq!(watch.left.load(Relaxed), 970);
    assert_eq!(*watch.tasks.lock().unwrap(), ["Reading pictures"]);
}
