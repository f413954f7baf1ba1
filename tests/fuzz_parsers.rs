//! Damaged files: thousands of random changes to small good files, and no parser may panic or take much memory.
//!
//! The changes come from a fixed seed, so a failure can be repeated; the message names the parser and the number of the
//! input. Peak memory is counted by the allocator of this test program.

use dood::{
    Device, Grads, Params, Tensor,
    checkpoint::{self, Checkpoint, Progress},
    data::{idx, npy, omniglot, pictures},
    model::{Config, GROUPS, Model, Start, objective::Running},
    ops::Placement,
    optim::Adam,
};
use flate2::{Compression, Crc, write::GzEncoder};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{Cursor, Write},
    panic::catch_unwind,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

/// A name, small good inputs, and whether a damaged one is accepted.
type Parser = (&'static str, fn() -> Vec<Vec<u8>>, fn(&[u8]) -> bool);

/// The parsers under test.
const PARSERS: &[Parser] = &[
    ("idx images", idx_images, |bytes| idx::images(bytes, "x").is_ok()),
    ("idx labels", idx_labels, |bytes| idx::labels(bytes, "x").is_ok()),
    ("idx.gz", || idx_images().iter().map(|file| gz(file)).collect(), |bytes| idx::images(bytes, "x").is_ok()),
    ("idx inside gz", idx_images, |bytes| idx::images(&gz(bytes), "x").is_ok()),
    ("npy", npys, read_npy),
    ("zip tree", zips, read_zip),
    ("png inside zip", pngs, |bytes| read_zip(&zip(&[(DRAWING, bytes)]))),
    ("png with right checksums inside zip", pngs, |bytes| read_zip(&zip(&[(DRAWING, &with_crcs(bytes))]))),
    ("png", pngs, read_picture),
    ("png with right checksums", pngs, |bytes| read_picture(&with_crcs(bytes))),
    ("jpeg", || coded(image::ImageFormat::Jpeg), read_picture),
    ("gif", || coded(image::ImageFormat::Gif), read_picture),
    ("bmp", || coded(image::ImageFormat::Bmp), read_picture),
    ("class labels", class_labels, read_runs),
    ("checkpoint", checkpoints, read_checkpoint),
];

/// Damaged inputs for each parser.
const INPUTS: usize = 50_000;

/// What one parser may hold at once, for inputs of a few kilobytes.
const PEAK: usize = 128 << 20;

#[test]
fn damaged_files_neither_panic_nor_take_much_memory() {
    for (name, seeds, parse) in PARSERS {
        let (seeds, start) = (seeds(), Instant::now());
        let mut random = Random(0x0dd_d00d);
        let (mut highest, mut accepted) = (0, 0);
        assert!(seeds.iter().all(|seed| parse(seed)), "{name}: a good input is refused");
        for i in 0..INPUTS {
            let input = damaged(&seeds, &mut random);
            let before = HELD.load(Relaxed);
            PEAKED.store(before, Relaxed);
            match catch_unwind(|| parse(&input)) {
                Ok(good) => accepted += usize::from(good),
                Err(_) => panic!("{name}: input {i} panics: {input:02x?}"),
            }
            let peak = PEAKED.load(Relaxed).saturating_sub(before);
            assert!(peak <= PEAK, "{name}: input {i} takes {peak} bytes: {input:02x?}");
            highest = highest.max(peak);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{name}: {INPUTS} inputs, {accepted} accepted, {seconds:.1} s, peak {} kB", highest / 1024);
    }
}

// ---- Damage ----

struct Random(u64);

impl Random {
    /// A number below `n` (xorshift64*).
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// One of the seeds with one to four changes.
fn damaged(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        // Half of the changes go to the beginning, where headers are, and a quarter to the end, where a zip's directory is.
        let len = bytes.len();
        let at = match random.below(4) {
            0 | 1 => random.below(len.min(32)),
            2 => len - random.below(len.min(96)).min(len),
            _ => random.below(len),
        }
        .min(len.saturating_sub(1));
        match random.below(8) {
            0 | 1 if len > 0 => bytes[at] ^= 1 << random.below(8),
            2 if len > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(64)).min(len);
                bytes.drain(at.min(end)..end);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let piece = other[from..(from + random.below(64)).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let huge = HUGE[random.below(HUGE.len())];
                let width = [2, 4, 8][random.below(3)];
                let field = if random.below(2) == 0 {
                    huge.to_le_bytes()[..width].to_vec()
                } else {
                    huge.to_be_bytes()[8 - width..].to_vec()
                };
                bytes.iter_mut().skip(at).zip(field).for_each(|(byte, new)| *byte = new);
            }
        }
    }
    bytes
}

const HUGE: [u64; 9] = [0, 1, 0x7fff, 0xffff, 0x10000, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

// ---- Good inputs ----

fn idx_file(kind: u8, sizes: &[u32], data: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut file = vec![0, 0, kind, sizes.len() as u8];
    sizes.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(data);
    file
}

fn idx_images() -> Vec<Vec<u8>> {
    let floats = (0..50).flat_map(|i| (i as f32 / 50.0).to_be_bytes());
    let doubles = (0..8).flat_map(|i| (f64::from(i) / 8.0).to_be_bytes());
    vec![
        idx_file(0x08, &[3, 28, 28], (0..3 * 784u32).map(|i| i as u8)),
        idx_file(0x0D, &[2, 5, 5], floats),
        idx_file(0x0E, &[2, 2, 2], doubles),
        idx_file(0x0B, &[1, 2, 2], (0..4u16).flat_map(u16::to_be_bytes)),
    ]
}

fn idx_labels() -> Vec<Vec<u8>> {
    vec![idx_file(0x08, &[200], 0..200), idx_file(0x0C, &[50], (0..50u32).flat_map(u32::to_be_bytes))]
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn npys() -> Vec<Vec<u8>> {
    let file = |version: u8, shape: &str| {
        let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY".to_vec();
        file.extend([version, 0]);
        file.extend(&(header.len() as u32).to_le_bytes()[..if version == 1 { 2 } else { 4 }]);
        file.extend(header.bytes());
        file.extend((0..2 * 784u32).map(|i| i as u8));
        file
    };
    vec![file(1, "(2, 784)"), file(2, "(2, 28, 28)"), file(3, "(2,784)")]
}

fn read_npy(bytes: &[u8]) -> bool {
    let Ok(mut file) = npy::Bitmaps::open(Cursor::new(bytes), "x") else { return false };
    let mut pixels = Vec::new();
    [0, file.count() - 1].into_iter().all(|i| file.read(i, &mut pixels).is_ok())
}

fn pngs() -> Vec<Vec<u8>> {
    let png = |image: image::DynamicImage| {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    };
    let grey = image::GrayImage::from_fn(20, 20, |x, y| image::Luma([(x * y) as u8]));
    let colour = image::RgbaImage::from_fn(9, 5, |x, y| image::Rgba([x as u8, y as u8, 7, 200]));
    vec![png(grey.into()), png(colour.into()), ONE_BIT_PNG.to_vec()]
}

/// Small pictures, in grey and in colour.
fn coded(format: image::ImageFormat) -> Vec<Vec<u8>> {
    let colour = image::RgbImage::from_fn(19, 17, |x, y| image::Rgb([(x * 13) as u8, (y * 11) as u8, 7]));
    let pictures = [image::DynamicImage::from(colour.clone()), image::DynamicImage::from(colour).to_luma8().into()];
    let code = |picture: image::DynamicImage| {
        let mut out = Cursor::new(Vec::new());
        // GIF has no grey of its own.
        let picture = if format == image::ImageFormat::Gif { picture.to_rgba8().into() } else { picture };
        picture.write_to(&mut out, format).unwrap();
        out.into_inner()
    };
    pictures.into_iter().map(code).collect()
}

fn read_picture(bytes: &[u8]) -> bool {
    pictures::decode(bytes, "x").is_ok()
}

/// 16x2 pixels of one bit, like those of Omniglot.
#[rustfmt::skip]
const ONE_BIT_PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52, 0x00, 0x00,
    0x00, 0x10, 0x00, 0x00, 0x00, 0x02, 0x01, 0x00, 0x00, 0x00, 0x00, 0x79, 0x96, 0x61, 0x5c, 0x00, 0x00, 0x00,
    0x0e, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0xf8, 0xc0, 0xcf, 0xf0, 0x9f, 0x11, 0x00, 0x06, 0xf1, 0x02,
    0x00, 0x26, 0xfe, 0x89, 0x75, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

/// The same PNG with the checksum of every chunk made right, so that damage gets past that check.
fn with_crcs(png: &[u8]) -> Vec<u8> {
    let mut png = png.to_vec();
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        let Some(chunk) = png.get(at + 4..end) else { break };
        let mut crc = Crc::new();
        crc.update(chunk);
        let sum = crc.sum().to_be_bytes();
        png.iter_mut().skip(end).zip(sum).for_each(|(byte, new)| *byte = new);
        at = end + 4;
    }
    png
}

fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, contents) in entries {
        zip.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(contents).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn zips() -> Vec<Vec<u8>> {
    let pngs = pngs();
    vec![
        zip(&[("images_background/Greek/character01/0001_01.png", &pngs[0])]),
        zip(&[("b/A/character01/1.png", &pngs[2]), ("b/A/character02/1.png", &pngs[1]), ("b/readme.txt", b"hello")]),
    ]
}

const DRAWING: &str = "A/character01/01.png";

fn read_zip(bytes: &[u8]) -> bool {
    omniglot::unzip(bytes, "x").is_ok_and(|tree| omniglot::characters(&tree, "x", 8).is_ok())
}

fn class_labels() -> Vec<Vec<u8>> {
    let line = |i| format!("run01/test/item{i:02}.png run01/training/class{:02}.png\n", 21 - i);
    vec![(1..=20).map(line).collect::<String>().into_bytes()]
}

/// Whether a list of labels can be followed to its images. One run is not the official twenty, so the count is refused.
fn read_runs(list: &[u8]) -> bool {
    let names =
        (1..=20).flat_map(|i| [format!("run01/test/item{i:02}.png"), format!("run01/training/class{i:02}.png")]);
    let mut tree: omniglot::Tree = names.map(|name| (name, ONE_BIT_PNG.to_vec())).collect();
    tree.insert("run01/class_labels.txt".into(), list.to_vec());
    omniglot::runs(&tree, "x", 2).unwrap_err().to_string().contains("holds 1 runs")
}

// ---- Counting memory ----

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAKED.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAKED.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A tiny model, without and with the state of its training.
fn checkpoints() -> Vec<Vec<u8>> {
    let paper = Config::paper(Placement::Warp);
    let sizes = Config { image: 5, conv1: 1, conv2: 1, features: 1, hidden: 1, baseline_hidden: 1, ..paper };
    let config = Config { points: 2, samples: 2, components: 1, strokes: 1, baseline_layers: 1, ..sizes };
    let (_, mut params) = Model::new(&config, Start::new(1), &Device::cpu()).unwrap();
    let mut adam = Adam::new(&params, &[1e-3; GROUPS.len()]);
    let grads = Grads::zeros(&params);
    adam.step(&mut params, &grads);
    let running = Running { statistics: Tensor::zeros(&Device::cpu(), &[2]), iteration: 1 };
    let settings = serde_json::json!({ "seed": 1 });
    let progress = Progress { adam: &adam, running: &running, settings: &settings };
    let folder = tempfile::tempdir().unwrap();
    let saved = |params: &Params, progress: Option<&Progress>| {
        let path = folder.path().join("checkpoint");
        checkpoint::save(&path, &config, params, progress).unwrap();
        std::fs::read(path).unwrap()
    };
    vec![saved(&params, None), saved(&params, Some(&progress))]
}

fn read_checkpoint(bytes: &[u8]) -> bool {
    let Ok(checkpoint) = Checkpoint::parse(bytes, "x") else { return false };
    let Ok((_, params)) = checkpoint.model(&Device::cpu()) else { return false };
    // A checkpoint for evaluation only is refused here, which is no damage.
    let _ = checkpoint.resume(&params, &mut Adam::new(&params, &[1e-3; GROUPS.len()]));
    true
}
