//! Reading data sets, good and bad.

mod common;

use common::{assert_says, characters, png, real, run_files, source, write, zip_file};
use dood::data::{DataSet, Images, Set, Source, idx, load, npy, omniglot, one_shot_runs, resize};
use flate2::{Compression, write::GzEncoder};
use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
    time::Instant,
};
use tempfile::tempdir;

// ---- Making small files of every format ----

fn idx_file(kind: u8, sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, kind, sizes.len() as u8];
    sizes.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(data);
    file
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn npy_file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn write_all(folder: &Path, entries: &[(String, Vec<u8>)]) {
    entries.iter().for_each(|(path, bytes)| write(folder, path, bytes));
}

/// Three 2x2 training images and one test image.
fn write_small_mnist(folder: &Path) {
    write(
        folder,
        "train-images-idx3-ubyte.gz",
        &gz(&idx_file(8, &[3, 2, 2], &[0, 1, 2, 3, 9, 9, 9, 9, 255, 0, 255, 0])),
    );
    write(folder, "train-labels-idx1-ubyte", &idx_file(8, &[3], &[7, 0, 9]));
    write(folder, "t10k-images-idx3-ubyte", &idx_file(8, &[1, 2, 2], &[4, 5, 6, 7]));
    write(folder, "t10k-labels-idx1-ubyte.gz", &gz(&idx_file(8, &[1], &[3])));
}

/// The sentence with which loading fails.
fn complaint(set: &str, folder: &Path) -> String {
    load(&source(set, folder), 2).unwrap_err().to_string()
}

// ---- Sources ----

#[test]
fn a_source_is_printed_as_it_was_written() {
    for text in ["mnist:/a/b", "kmnist:c", "emnist:d", "quickdraw:e", "omniglot:f", "idx:g", "synthetic"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    let Source::Public { set: Set::Mnist, folder } = "mnist".parse().unwrap() else { panic!("not MNIST") };
    assert!(folder.ends_with("mnist"), "{}", folder.display());
}

#[test]
fn a_source_that_does_not_exist_is_answered_with_those_that_do() {
    for text in ["", "cifar", "idx", "synthetic:x", "cifar:x"] {
        let error = text.parse::<Source>().unwrap_err();
        assert_says(&error.to_string(), &["mnist", "quickdraw", "omniglot", "idx:FOLDER", "synthetic"]);
        assert_eq!(error.exit_code(), 2);
    }
    assert_says(&"mnist:".parse::<Source>().unwrap_err().to_string(), &["no folder after the colon"]);
}

#[test]
fn images_cannot_be_made_without_pixels() {
    let error = load(&"mnist:x".parse().unwrap(), 0).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_says(&error.to_string(), &["0 pixels a side"]);
}

// ---- IDX ----

#[test]
fn raw_and_gzipped_idx_are_read_alike() {
    let folder = tempdir().unwrap();
    write_small_mnist(folder.path());
    let DataSet { name, train, test } = load(&source("mnist", folder.path()), 2).unwrap();
    assert_eq!(name, "mnist");
    assert_eq!(train.pixels, [0, 1, 2, 3, 9, 9, 9, 9, 255, 0, 255, 0]);
    assert_eq!((train.len(), train.image(1)), (3, &[9; 4][..]));
    assert_eq!(train.labels, Some(vec![7, 0, 9]));
    assert_eq!(test, Images { side: 2, pixels: vec![4, 5, 6, 7], labels: Some(vec![3]) });
    // The same bytes under a name without .gz: what counts is the content.
    fs::rename(folder.path().join("train-images-idx3-ubyte.gz"), folder.path().join("train-images-idx3-ubyte"))
        .unwrap();
    assert_eq!(load(&source("mnist", folder.path()), 2).unwrap().train, train);
}

#[test]
fn any_folder_of_idx_files_will_do_with_or_without_labels() {
    let folder = tempdir().unwrap();
    write(folder.path(), "my-Train-images.idx", &idx_file(8, &[2, 1, 3], &[0, 0, 0, 8, 8, 8]));
    write(folder.path(), "my-test-images.idx", &idx_file(8, &[1, 1, 3], &[5, 5, 5]));
    let set = load(&source("idx", folder.path()), 2).unwrap();
    assert_eq!(set.train, Images { side: 2, pixels: vec![0, 0, 0, 0, 8, 8, 0, 0], labels: None });
    write(folder.path(), "my-train-labels.idx", &idx_file(0x0C, &[2], &[0, 0, 1, 0, 0, 0, 0, 2]));
    assert_eq!(load(&source("idx", folder.path()), 2).unwrap().train.labels, Some(vec![256, 2]));
    write(folder.path(), "other-train-images.idx", &idx_file(8, &[1, 1, 1], &[0]));
    assert_says(
        &complaint("idx", folder.path()),
        &["2 files of training images", "my-Train-images.idx", "other-train-images.idx", "words test and images"],
    );
}

#[test]
fn emnist_files_stay_in_their_transposed_orientation() {
    let folder = tempdir().unwrap();
    for part in ["train", "test"] {
        write(folder.path(), &format!("emnist47-{part}-images-idx3-ubyte"), &idx_file(8, &[1, 2, 2], &[1, 2, 3, 4]));
        write(folder.path(), &format!("emnist47-{part}-labels-idx1-ubyte"), &idx_file(8, &[1], &[46]));
    }
    assert_eq!(load(&source("emnist", folder.path()), 2).unwrap().train.pixels, [1, 2, 3, 4]);
    // The official files win over the stand-in.
    write(folder.path(), "emnist-balanced-test-images-idx3-ubyte.gz", &gz(&idx_file(8, &[1, 2, 2], &[9, 9, 9, 9])));
    assert_eq!(load(&source("emnist", folder.path()), 2).unwrap().test.pixels, [9; 4]);
}

#[test]
fn floating_point_images_are_brightness_from_0_to_1() {
    let floats: Vec<u8> = [0.0f32, 0.5, 1.0, 0.25].iter().flat_map(|v| v.to_be_bytes()).collect();
    assert_eq!(idx::images(&idx_file(0x0D, &[1, 2, 2], &floats), "f").unwrap().pixels, [0, 128, 255, 64]);
    let doubles: Vec<u8> = [1.0f64, 0.0].iter().flat_map(|v| v.to_be_bytes()).collect();
    assert_eq!(idx::images(&gz(&idx_file(0x0E, &[2, 1, 1], &doubles)), "f").unwrap().pixels, [255, 0]);
}

#[test]
fn floating_point_images_with_nan_or_out_of_range_name_the_image() {
    for (value, word) in [(f32::NAN, "NaN"), (1.5, "1.5"), (-0.1, "-0.1"), (f32::INFINITY, "inf")] {
        let floats: Vec<u8> = [0.0, 0.5, 1.0, value].iter().flat_map(|v| v.to_be_bytes()).collect();
        let error = idx::images(&idx_file(0x0D, &[2, 1, 2], &floats), "x.idx").unwrap_err().to_string();
        assert_says(&error, &["x.idx", "image 1", word, "0 to 1"]);
    }
    let error = idx::images(&idx_file(0x09, &[1, 1, 1], &[0x80]), "x.idx").unwrap_err().to_string();
    assert_says(&error, &["image 0", "-128", "0 to 255"]);
}

#[test]
fn a_missing_folder_says_how_to_get_it() {
    assert_says(&complaint("mnist", Path::new("/nowhere/at/all")), &["/nowhere/at/all does not exist", "--download"]);
    assert_says(&complaint("idx", Path::new("/nowhere/at/all")), &["/nowhere/at/all does not exist"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_says(&complaint("mnist", file.path()), &["is a file, not a folder"]);
}

#[test]
fn an_empty_folder_says_which_file_is_expected() {
    let folder = tempdir().unwrap();
    assert_says(&complaint("mnist", folder.path()), &["no train-images-idx3-ubyte in", ".gz"]);
    assert_says(&complaint("emnist", folder.path()), &["no emnist-balanced-train-images-idx3-ubyte in"]);
    assert_says(&complaint("idx", folder.path()), &["no file with the words train and images in its name in"]);
    assert_says(&complaint("quickdraw", folder.path()), &["neither CATEGORY.npy nor quickdraw10-"]);
    assert_says(&complaint("omniglot", folder.path()), &["neither images_", "nor a folder images_"]);
}

#[test]
fn a_file_that_is_not_idx_says_so() {
    let error = |bytes: &[u8]| idx::images(bytes, "x").unwrap_err().to_string();
    assert_says(&error(b"<html>404"), &["x: not an IDX file but a web page"]);
    assert_says(&error(&idx_file(7, &[1, 1, 1], &[0])), &["not an IDX file", "00, 00, 07, 03"]);
    assert_says(&error(&idx_file(8, &[5], &[0; 5])), &["has 1 dimensions, [5]", "images has 3"]);
    assert_says(&error(&[]), &["an empty file"]);
    assert_says(&error(&gz(b"hello world")), &["not an IDX file but a text"]);
}

#[test]
fn a_file_shorter_or_longer_than_its_header_says_so() {
    let whole = idx_file(8, &[4, 16, 16], &(0..=255).cycle().take(1024).collect::<Vec<u8>>());
    let error = |bytes: &[u8]| idx::images(bytes, "x").unwrap_err().to_string();
    assert_says(&error(&whole[..whole.len() - 8]), &["promises 1024 bytes", "only 1016"]);
    assert_says(&error(&[&whole[..], &[0]].concat()), &["promises 1024 bytes", "more"]);
    assert_says(&error(&gz(&[&whole[..], &[0]].concat())), &["promises 1024 bytes", "more"]);
    let packed = gz(&whole);
    assert_says(&error(&packed[..packed.len() / 2]), &["cut off"]);
    assert_says(&error(&packed[..packed.len() - 3]), &["cut off"]);
    let mut damaged = packed.clone();
    let middle = damaged.len() - 6;
    damaged[middle] ^= 1;
    assert_says(&error(&damaged), &["cannot be unpacked", "damaged"]);
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let error = |sizes: &[u32]| idx::images(&idx_file(8, sizes, &[0; 64]), "x").unwrap_err().to_string();
    assert_says(&error(&[0, 28, 28]), &["holds no images"]);
    assert_says(&error(&[1, 0, 28]), &["0 rows or columns"]);
    assert_says(&error(&[1, 28, u32::MAX]), &["4294967295 rows or columns"]);
    assert_says(&error(&[u32::MAX, 28, 28]), &["promises", "more than the file can hold"]);
    let packed = gz(&idx_file(8, &[u32::MAX, 2048, 2048], &[0; 64]));
    assert_says(&idx::images(&packed, "x").unwrap_err().to_string(), &["more than the file can hold"]);
}

#[test]
fn labels_must_match_their_images() {
    let folder = tempdir().unwrap();
    write_small_mnist(folder.path());
    write(folder.path(), "train-labels-idx1-ubyte", &idx_file(8, &[2], &[1, 2]));
    assert_says(&complaint("mnist", folder.path()), &["holds 3 images", "2 labels"]);
    write(folder.path(), "train-labels-idx1-ubyte", &idx_file(0x0D, &[1], &[0; 4]));
    assert_says(&complaint("mnist", folder.path()), &["labels must be integers"]);
    write(folder.path(), "train-labels-idx1-ubyte", &idx_file(0x0C, &[1], &(-1i32).to_be_bytes()));
    assert_says(&complaint("mnist", folder.path()), &["label 0", "-1"]);
    fs::remove_file(folder.path().join("train-labels-idx1-ubyte")).unwrap();
    assert_says(&complaint("mnist", folder.path()), &["no train-labels-idx1-ubyte"]);
}

// ---- QuickDraw ----

/// `count` drawings that hold their category and their number.
fn bitmaps(category: u8, count: usize) -> Vec<u8> {
    let rows = (0..count).flat_map(|i| {
        let mut row = [category; 784];
        row[0] = (i >> 8) as u8;
        row[1] = i as u8;
        row
    });
    npy_file("|u1", "False", &format!("({count}, 784)"), &rows.collect::<Vec<u8>>())
}

#[test]
fn quickdraw_takes_5000_drawings_of_each_category_without_repeating_one() {
    let folder = tempdir().unwrap();
    write(folder.path(), "apple.npy", &bitmaps(10, 5200));
    write(folder.path(), "tree.npy", &bitmaps(20, 30));
    let set = load(&source("quickdraw", folder.path()), 28).unwrap();
    assert_eq!((set.test.len(), set.train.len()), (1006, 4024));
    let mut seen = std::collections::HashSet::new();
    for part in [&set.train, &set.test] {
        for (i, &label) in part.labels.as_ref().unwrap().iter().enumerate() {
            let image = part.image(i);
            assert_eq!(image[2], [10, 20][usize::from(label)]);
            assert!(seen.insert((label, image[0], image[1])), "a drawing appears twice");
        }
    }
    assert_eq!(seen.iter().filter(|(label, ..)| *label == 0).count(), 5000);
    let labels = set.test.labels.as_ref().unwrap();
    assert!(labels.contains(&0) && labels.contains(&1), "the parts are not permuted");
    assert_eq!(load(&source("quickdraw", folder.path()), 28).unwrap(), set, "not the same set every time");
}

#[test]
fn the_ten_quickdraw_categories_are_chosen_from_many() {
    let folder = tempdir().unwrap();
    let names =
        ["airplane", "apple", "bicycle", "book", "car", "cell_phone", "eye", "eyeglasses", "smiley face", "tree"];
    for (i, name) in names.iter().enumerate() {
        write(folder.path(), &format!("full_numpy_bitmap_{name}.npy"), &bitmaps(i as u8, 5));
    }
    write(folder.path(), "anvil.npy", &bitmaps(77, 5));
    let set = load(&source("quickdraw", folder.path()), 28).unwrap();
    assert_eq!((set.train.len(), set.test.len()), (40, 10));
    for (i, &label) in set.train.labels.as_ref().unwrap().iter().enumerate() {
        assert_eq!(u16::from(set.train.image(i)[2]), label);
    }
}

#[test]
fn bitmaps_of_another_type_shape_or_order_are_refused() {
    let error = |bytes: Vec<u8>| npy::Bitmaps::open(Cursor::new(bytes), "x.npy").err().unwrap().to_string();
    let data = [0; 784];
    assert_says(&error(npy_file("<c8", "False", "(1, 784)", &data)), &["x.npy", "type '<c8'", "bytes"]);
    assert_says(&error(npy_file("|u1", "False", "(784,)", &data)), &["shape (784,)", "(count, 784)"]);
    assert_says(&error(npy_file("|u1", "False", "(1, 28, 29)", &data)), &["shape (1, 28, 29)"]);
    assert_says(&error(npy_file("|u1", "False", "(0, 784)", &[])), &["no drawings"]);
    assert_says(&error(npy_file("|u1", "False", "(2, 784)", &data)), &["promises 2 drawings", "784 bytes follow"]);
    assert_says(
        &error(npy_file("|u1", "False", "(18446744073709551615, 784)", &data)),
        &["promises 18446744073709551615"],
    );
    assert_says(&error(b"PK\x03\x04 not numpy".to_vec()), &["not an .npy file but a zip archive"]);
    assert_says(&error(b"\x93NUMPY\x01\x00\xff\xff{}".to_vec()), &["cut off"]);
    assert_says(&error(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec()), &["claims 4294967295 bytes"]);
    let mut ok = npy::Bitmaps::open(Cursor::new(npy_file("u1", "False", "(1, 28, 28)", &[7; 784])), "x").unwrap();
    let mut pixels = Vec::new();
    ok.read(0, &mut pixels).unwrap();
    assert_eq!((ok.count(), pixels), (1, vec![7; 784]));
}

// ---- Omniglot ----

#[test]
fn omniglot_is_read_from_zips_and_from_folders_alike_with_bright_ink() {
    let (zips, folders) = (tempdir().unwrap(), tempdir().unwrap());
    for root in ["images_background", "images_evaluation"] {
        write(zips.path(), &format!("{root}.zip"), &zip_file(&characters(root)));
        write_all(folders.path(), &characters(root));
    }
    let set = load(&source("omniglot", zips.path()), 105).unwrap();
    assert_eq!(set, load(&source("omniglot", folders.path()), 105).unwrap());
    assert_eq!(set.train.labels, Some(vec![0, 0, 1, 1, 2, 2]));
    let ink = |i| set.train.image(i).iter().filter(|&&p| p == 255).count();
    assert_eq!([ink(0), ink(2), ink(4)], [100, 400, 900]);
    assert_eq!(set.train.image(0).iter().filter(|&&p| p == 0).count(), 105 * 105 - 100);
}

#[test]
fn a_zip_without_the_expected_tree_says_what_is_expected() {
    let folder = tempdir().unwrap();
    let other = zip_file(&[("holiday/beach.png".into(), png(4, 1)), ("readme.txt".into(), b"hello".to_vec())]);
    for name in ["images_background.zip", "images_evaluation.zip", "all_runs.zip"] {
        write(folder.path(), name, &other);
    }
    assert_says(&complaint("omniglot", folder.path()), &["holds no ALPHABET/characterNN/*.png", "Omniglot"]);
    let error = one_shot_runs(folder.path(), 50).unwrap_err().to_string();
    assert_says(&error, &["holds 0 runs", "class_labels.txt", "instead of 20"]);
    write(folder.path(), "images_background.zip", b"<html>not found</html>");
    write(folder.path(), "images_evaluation.zip", b"<html>not found</html>");
    assert_says(
        &complaint("omniglot", folder.path()),
        &["not a zip archive but a web page", "delete", "images_background.zip, and --download fetches it anew"],
    );
}

#[test]
fn damaged_and_oversized_files_in_a_zip_are_refused() {
    let zip = |contents: Vec<u8>| zip_file(&[("images/Greek/character01/01.png".into(), contents)]);
    let error = |contents| {
        let tree = omniglot::unzip(&zip(contents), "x.zip");
        tree.and_then(|tree| omniglot::characters(&tree, "x.zip", 50)).unwrap_err().to_string()
    };
    assert_says(
        &error(b"not a PNG".to_vec()),
        &["x.zip", "character01/01.png is not a PNG, JPEG, GIF or BMP picture but a text"],
    );
    assert_says(&error(vec![0; 64 << 20]), &["far larger than any file of Omniglot"]);
    assert_says(&error(png(3000, 1)), &["character01/01.png has 3000x3000 pixels", "limit"]);
    let mut torn = zip(vec![5; 5000]);
    torn.truncate(torn.len() - 30);
    assert_says(&omniglot::unzip(&torn, "x.zip").unwrap_err().to_string(), &["not a zip that can be read"]);
}

#[test]
fn one_shot_runs_know_which_support_image_is_each_query() {
    let folder = tempdir().unwrap();
    write(folder.path(), "all_runs.zip", &zip_file(&run_files()));
    let runs = one_shot_runs(folder.path(), 30).unwrap();
    assert_eq!(runs.len(), 20);
    for run in &runs {
        assert_eq!((run.support.len(), run.query.len()), (20, 20));
        assert_eq!(run.support.labels, Some((0..20).collect()));
        for (i, &answer) in run.query.labels.as_ref().unwrap().iter().enumerate() {
            assert_eq!(usize::from(answer), 19 - i);
            assert_eq!(run.query.image(i), run.support.image(usize::from(answer)));
        }
    }
    let unpacked = tempdir().unwrap();
    run_files().iter().for_each(|(path, bytes)| write(unpacked.path(), &format!("all_runs/{path}"), bytes));
    assert_eq!(one_shot_runs(unpacked.path(), 30).unwrap(), runs);
    fs::remove_file(unpacked.path().join("all_runs/run07/test/item03.png")).unwrap();
    let error = one_shot_runs(unpacked.path(), 30).unwrap_err().to_string();
    assert_says(&error, &["run07/class_labels.txt", "names an image that is not there", "item03.png"]);
}

// ---- Resizing ----

#[test]
fn resizing_equals_pillow_to_the_bit() {
    let folder = std::env::var_os("DOOD_FIXTURES").map_or_else(|| PathBuf::from("tests/fixtures"), PathBuf::from);
    let path = folder.join("ops.safetensors");
    let Ok(bytes) = fs::read(&path) else {
        common::skipped(format_args!("{} is missing", path.display()));
        return;
    };
    let fixtures = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for side in [28, 105] {
        let tensor = |name| fixtures.tensor(&format!("resize/{side}to50/{name}")).unwrap();
        let (image, expected) = (tensor("in.image"), tensor("out.y"));
        assert_eq!(image.shape()[1..], [side, side]);
        assert_eq!(resize(image.data(), side, side, 50), expected.data(), "{side} to 50");
    }
}

// ---- The real sets ----

#[track_caller]
fn real_set_has(set: &str, (train, test, train_classes, test_classes): (usize, usize, u16, u16)) {
    let Some(folder) = real(set) else { return };
    let start = Instant::now();
    let data = load(&source(set, &folder), 50).unwrap();
    println!("{set}: {} images in {:.2} s", train + test, start.elapsed().as_secs_f64());
    assert_eq!((data.train.len(), data.test.len()), (train, test));
    for (part, classes) in [(&data.train, train_classes), (&data.test, test_classes)] {
        let mut seen = part.labels.clone().unwrap();
        assert_eq!(seen.len(), part.len());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..classes).collect::<Vec<_>>());
        let mean = part.pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / (255.0 * part.pixels.len() as f64);
        assert!((0.02..0.4).contains(&mean), "{set}: mean brightness {mean}: ink should be bright");
    }
}

#[test]
fn real_mnist_has_its_counts() {
    real_set_has("mnist", (60_000, 10_000, 10, 10));
}

#[test]
fn real_kmnist_has_its_counts() {
    real_set_has("kmnist", (60_000, 10_000, 10, 10));
}

#[test]
fn real_emnist_has_its_counts() {
    real_set_has("emnist", (96_189, 9_400, 47, 47));
}

#[test]
fn real_quickdraw_has_its_counts() {
    real_set_has("quickdraw", (37_600, 9_399, 10, 10));
}

#[test]
fn real_omniglot_has_its_counts() {
    real_set_has("omniglot", (19_280, 13_180, 964, 659));
}

#[test]
fn real_one_shot_runs_are_twenty() {
    let Some(folder) = real("omniglot") else { return };
    let runs = one_shot_runs(&folder, 50).unwrap();
    assert_eq!(runs.len(), 20);
    // From run01/class_labels.txt: item01 is class08.
    assert_eq!(runs[0].query.labels.as_ref().unwrap()[..3], [7, 8, 1]);
    for run in runs {
        let mut answers = run.query.labels.unwrap();
        answers.sort_unstable();
        assert_eq!(answers, (0..20).collect::<Vec<_>>());
    }
}
