//! QuickDraw: ten categories of Google's drawings as 28x28 bitmaps.
//!
//! 5,000 drawings per category are drawn at random without replacement, all are permuted, the first fifth becomes the test
//! part. The choice depends only on a fixed seed and the number of drawings in the files, so everyone gets the same set.

use super::{Grey, Images, Reading, idx, names_in, npy};
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
        return Err(Error::Data(format!("{folder} has neither CATEGORY.npy nor quickdraw10-*-idx3-ubyte files")));
    }
    let mut random = SplitMix(SEED);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (label, path) in found.iter().enumerate() {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let mut bitmaps = npy::Bitmaps::open(file, &path.display().to_string())?;
        let mut chosen = random.permutation(bitmaps.count());
        chosen.truncate(PER_CATEGORY);
        chosen.sort_unstable();
        reading.observer.go_on()?;
        for i in chosen {
            bitmaps.read(i, &mut pixels)?;
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
    let names = names_in(folder)?;
    let named = |wanted: &&str| names.iter().find(|name| category(name).as_deref() == Some(*wanted));
    let ten: Option<Vec<&String>> = CATEGORIES.iter().map(named).collect();
    let chosen = ten.unwrap_or_else(|| names.iter().filter(|name| name.ends_with(".npy")).collect());
    Ok(chosen.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether `folder` has the set in either form.
pub(super) fn is_in(folder: &Path) -> bool {
    categories_in(folder).is_ok_and(|found| found.len() >= CATEGORIES.len()) || idx::Layout::QUICKDRAW.is_in(folder)
}

const SEED: u64 = 0x5eed_d4a3;

/// SplitMix64 (Steele, Lea and Flood 2014): enough to choose drawings, and the same for ever.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The numbers below `n` in random order (Fisher and Yates).
    fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            // The high word of a 64x64-bit product: uniform below i + 1 up to a bias of i / 2^64.
            let j = (u128::from(self.next()) * (i as u128 + 1)) >> 64;
            order.swap(i, j as usize);
        }
        order
    }
}
