//! QuickDraw: ten categories of Google's drawings as 28x28 bitmaps.
//!
//! 5,000 drawings per category are drawn at random without replacement, all are permuted, the first fifth becomes the test
//! part. The choice depends only on a fixed seed and the number of drawings in the files, so everyone gets the same set.

use super::{Entry, Grey, Images, Reading, entries, idx, npy, shuffle::SplitMix};
use crate::{Error, Result};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// The categories of the set, in the order of their labels.
pub const CATEGORIES: [&str; 10] =
    ["airplane", "apple", "bicycle", "book", "car", "cell phone", "eye", "eyeglasses", "smiley face", "tree"];

/// Drawings taken from each category; all of a category that has fewer.
pub const PER_CATEGORY: usize = 5000;

/// Reads QuickDraw from a folder of Google's `CATEGORY.npy` files, or of `quickdraw10-*` IDX files if it has no `.npy`.
///
/// Uses [`CATEGORIES`] if all ten are there, else every `.npy` file in the order of their names; labels follow that order.
pub(super) fn load(folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
    let found = categories_in(folder)?;
    if found.is_empty() {
        if idx::Layout::QUICKDRAW.is_in(folder) {
            return idx::Layout::QUICKDRAW.load(folder, reading);
        }
        let folder = folder.display();
        return Err(Error::Data(format!(
            "{folder} has neither CATEGORY.npy nor quickdraw10-*-idx3-ubyte files: fetch the set with --download, or name the \
             folder that has it, as in quickdraw:FOLDER"
        )));
    }
    let mut random = SplitMix::new();
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (label, path) in found.iter().enumerate() {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let bitmaps = npy::Bitmaps::open(file, &path.display().to_string());
        let mut bitmaps = bitmaps.map_err(|e| reading.remedy(path, e))?;
        let mut chosen = random.permutation(bitmaps.count());
        chosen.truncate(PER_CATEGORY);
        chosen.sort_unstable();
        reading.observer.go_on()?;
        for i in chosen {
            bitmaps.read(i, &mut pixels).map_err(|e| reading.remedy(path, e))?;
            labels.push(label as u16);
        }
    }
    let order = random.permutation(labels.len());
    let (test, train) = order.split_at(labels.len() / 5);
    let part = |chosen: &[usize]| -> Result<Images> {
        let size = npy::SIDE * npy::SIDE;
        let raw: Vec<u8> = chosen.iter().flat_map(|i| &pixels[i * size..(i + 1) * size]).copied().collect();
        let pixels = reading.fit(Grey { height: npy::SIDE, width: npy::SIDE, pixels: raw })?;
        let labels = Some(chosen.iter().map(|&i| labels[i]).collect());
        Ok(Images { side: reading.options.side, pixels, labels })
    };
    if test.is_empty() {
        return Err(Error::Data(format!("{} holds fewer than five drawings, too few to split", folder.display())));
    }
    Ok((part(train)?, part(test)?))
}

/// The `.npy` files to use, in the order of their labels.
fn categories_in(folder: &Path) -> Result<Vec<PathBuf>> {
    // `cell phone.npy`, `cell_phone.npy`, and `full_numpy_bitmap_cell phone.npy` as the storage browser saves it.
    let category = |name: &str| {
        let stem = name.strip_suffix(".npy")?;
        Some(stem.strip_prefix("full_numpy_bitmap_").unwrap_or(stem).replace('_', " "))
    };
    let mut files = entries(folder)?;
    files.retain(|file| file.path.is_file() && file.name.ends_with(".npy"));
    let named = |wanted: &&str| files.iter().find(|file| category(&file.name).as_deref() == Some(*wanted));
    let ten: Option<Vec<&Entry>> = CATEGORIES.iter().map(named).collect();
    let chosen = ten.unwrap_or_else(|| files.iter().collect());
    Ok(chosen.into_iter().map(|file| file.path.clone()).collect())
}

/// Whether `folder` has the set in either form.
pub(super) fn is_in(folder: &Path) -> bool {
    categories_in(folder).is_ok_and(|found| found.len() >= CATEGORIES.len()) || idx::Layout::QUICKDRAW.is_in(folder)
}

/// Whether `folder` has files of the set in either form.
pub(super) fn any_in(folder: &Path) -> bool {
    categories_in(folder).is_ok_and(|found| !found.is_empty()) || idx::Layout::QUICKDRAW.any_in(folder)
}
