//! Splits of a set that are the same for everybody and for ever.

const SEED: u64 = 0x5eed_d4a3;

/// SplitMix64 (Steele, Lea and Flood 2014): enough to choose drawings. It is apart from [`rng`](crate::rng) so that no change
/// there moves an image from one part of a set to the other.
pub(super) struct SplitMix(u64);

impl SplitMix {
    pub fn new() -> Self {
        SplitMix(SEED)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The numbers below `n` in random order (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            // The high word of a 64x64-bit product: uniform below i + 1 up to a bias of i / 2^64.
            let j = (u128::from(self.next()) * (i as u128 + 1)) >> 64;
            order.swap(i, j as usize);
        }
        order
    }
}
