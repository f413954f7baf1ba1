//! Counter-based random numbers (Philox4x32-10): a function of (seed, stream, step, element) and nothing else. Every device draws
//! the same ones in any order, a run is reproducible from its seed, and a resumed run needs no saved generator.
//!
//! [`Rng::generator`] gives a stream to whatever takes generators of the crate `rand`: shuffles, choices, and every distribution of
//! `rand_distr`.
//!
//! ```
//! use dood::rng::{Rng, Stream};
//! use rand::{RngExt, seq::SliceRandom};
//! use rand_distr::{Beta, Distribution};
//!
//! let mut generator = Rng::new(7, 0).generator(Stream(3));
//! let mut cards: Vec<u8> = (0..52).collect();
//! cards.shuffle(&mut generator);
//! let die = generator.random_range(1..=6);
//! let share = Beta::new(2.0, 5.0).unwrap().sample(&mut generator);
//! assert!((1..=6).contains(&die) && 0.0 < share && share < 1.0);
//! ```

use rand::{SeedableRng, TryRng, rand_core::utils};
use std::convert::Infallible;

/// What a random number is for. Streams are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub u32);

/// The numbers of one training step (or one evaluation batch).
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    /// Key of the run.
    pub seed: u64,
    /// Which step.
    pub step: u64,
    /// The row of the batch at which what is drawn for begins: 0 but where another GPU has the rows before.
    pub row: usize,
}

impl Rng {
    /// The generator of step `step` of the run with seed `seed`.
    pub fn new(seed: u64, step: u64) -> Self {
        Rng { seed, step, row: 0 }
    }

    /// The numbers of the same step from row `row` of the batch on, for what has numbers of its own for every row.
    pub fn from_row(self, row: usize) -> Self {
        Rng { row, ..self }
    }

    /// Four random words: block `block` of `stream`.
    #[inline(always)]
    pub fn words(&self, stream: Stream, block: u32) -> [u32; 4] {
        let counter = [block, stream.0, self.step as u32, (self.step >> 32) as u32];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Element `i` of the uniform stream: a multiple of 2⁻²⁴ in [0,1), exact in single precision.
    pub fn uniform(&self, stream: Stream, i: usize) -> f64 {
        (self.words(stream, (i / 4) as u32)[i % 4] >> 8) as f64 / (1u32 << 24) as f64
    }

    /// Element `i` of the standard normal stream (Box–Muller).
    pub fn normal(&self, stream: Stream, i: usize) -> f64 {
        let words = self.words(stream, (i / 2) as u32);
        let unit = |w: u32| (w as f64 + 0.5) / (1u64 << 32) as f64;
        let (a, b) = if i.is_multiple_of(2) { (words[0], words[1]) } else { (words[2], words[3]) };
        (-2.0 * unit(a).ln()).sqrt() * (std::f64::consts::TAU * unit(b)).cos()
    }

    /// Integer `i` of the stream, uniform in `0..n` (bias below n/2⁶⁴).
    pub fn below(&self, stream: Stream, i: usize, n: usize) -> usize {
        let words = self.words(stream, i as u32);
        let wide = (words[0] as u128) << 32 | words[1] as u128;
        ((wide * n as u128) >> 64) as usize
    }

    /// A permutation of `0..n` (Fisher–Yates).
    pub fn permutation(&self, stream: Stream, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(stream, i, i + 1));
        }
        order
    }

    /// All words of a stream in their order, as a generator of the crate `rand`.
    pub fn generator(self, stream: Stream) -> Generator {
        Generator { rng: self, stream, next: 0, block: [0; 4] }
    }
}

/// The words of one stream, one after the other: block 0 from its first to its last, then block 1. After 2³⁴ of them it begins anew.
#[derive(Clone, Debug)]
pub struct Generator {
    rng: Rng,
    stream: Stream,
    /// Words drawn so far.
    next: u64,
    /// The block that the last of them came from.
    block: [u32; 4],
}

impl TryRng for Generator {
    type Error = Infallible;

    #[inline]
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let at = (self.next % 4) as usize;
        if at == 0 {
            self.block = self.rng.words(self.stream, (self.next / 4) as u32);
        }
        self.next += 1;
        Ok(self.block[at])
    }

    #[inline]
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        utils::next_u64_via_u32(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        utils::fill_bytes_via_next_word(bytes, || self.try_next_u32())
    }
}

/// Stream 0 of step 0; the seed is that of [`Rng::new`], its lowest byte first.
impl SeedableRng for Generator {
    type Seed = [u8; 8];

    fn from_seed(seed: [u8; 8]) -> Self {
        Rng::new(u64::from_le_bytes(seed), 0).generator(Stream(0))
    }
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = counter[0] as u64 * 0xD251_1F53;
        let b = counter[2] as u64 * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{assert_abs_diff_eq, assert_ulps_eq};
    use rand::{Rng as _, seq::SliceRandom};
    use rand_distr::{Distribution, Gamma};

    /// Worked out apart from this code: whatever is changed here, old runs must draw the same numbers.
    #[test]
    fn every_kind_of_number_stays_what_it_is() {
        let (rng, stream) = (Rng::new(0x0123_4567_89ab_cdef, 0x1_0000_0007), Stream(5));
        let words = [0xab085627, 0x5f4a559d, 0x831c5223, 0xe8df1dfa, 0xae25ead8, 0x1ee04b5c, 0x79dfd35b, 0xfd698ef1];
        assert_eq!([rng.words(stream, 0), rng.words(stream, 1)].concat(), words);
        let uniform =
            [0.6680959463119507, 0.3722279667854309, 0.5121508836746216, 0.909654438495636, 0.6802660226821899];
        assert_eq!([0, 1, 2, 3, 4].map(|i| rng.uniform(stream, i)), uniform);
        let normal = [-0.6239206415667475, 0.9754018918668581, 0.637585054162685, 1.2158926151785174];
        assert_ulps_eq!([0, 1, 2, 3].map(|i| rng.normal(stream, i))[..], normal[..], max_ulps = 4);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|i| rng.below(stream, i, 1000)), [668, 680, 220, 842, 408, 848]);
        assert_eq!(rng.permutation(stream, 8), [4, 1, 0, 3, 2, 6, 7, 5]);
    }

    #[test]
    fn a_generator_gives_the_words_of_its_stream() {
        let rng = Rng::new(0x0123_4567_89ab_cdef, 0x1_0000_0007);
        let mut generator = rng.generator(Stream(5));
        let drawn: Vec<u32> = (0..9).map(|_| generator.next_u32()).collect();
        let words = [0, 1, 2].map(|block| rng.words(Stream(5), block)).concat();
        assert_eq!(drawn, words[..9]);
        assert_eq!(generator.next_u64(), u64::from(words[9]) | u64::from(words[10]) << 32);
        let mut bytes = [0; 6];
        rng.generator(Stream(5)).fill_bytes(&mut bytes);
        assert_eq!(bytes, [0x27, 0x56, 0x08, 0xab, 0x9d, 0x55]);
        assert_eq!(Generator::from_seed([9, 1, 0, 0, 0, 0, 0, 0]).next_u32(), Rng::new(265, 0).words(Stream(0), 0)[0]);
    }

    #[test]
    fn distributions_of_rand_distr_draw_from_it() {
        let (mut generator, n) = (Rng::new(1, 2).generator(Stream(3)), 20_000);
        let gamma = Gamma::new(3.0, 0.5).unwrap();
        let drawn: Vec<f64> = gamma.sample_iter(&mut generator).take(n).collect();
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert_abs_diff_eq!(mean, 1.5, epsilon = 0.03);
        assert_abs_diff_eq!(variance, 0.75, epsilon = 0.04);
        let mut order: Vec<u32> = (0..100).collect();
        order.shuffle(&mut generator);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn philox_gives_the_known_answers() {
        // Known-answer test of the Random123 library.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    }

    #[test]
    fn numbers_have_the_moments_they_should() {
        let (rng, n) = (Rng::new(1, 2), 100_000);
        let moments = |f: &dyn Fn(usize) -> f64| {
            let mean = (0..n).map(f).sum::<f64>() / n as f64;
            (mean, (0..n).map(|i| (f(i) - mean).powi(2)).sum::<f64>() / n as f64)
        };
        let (mean, var) = moments(&|i| rng.normal(Stream(3), i));
        assert_abs_diff_eq!([mean, var][..], [0.0, 1.0][..], epsilon = 0.02);
        let (mean, var) = moments(&|i| rng.uniform(Stream(3), i));
        assert_abs_diff_eq!([mean, var][..], [0.5, 1.0 / 12.0][..], epsilon = 0.002);
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_the_step() {
        let order = Rng::new(5, 0).permutation(Stream(0), 1000);
        let mut sorted = order.clone();
        sorted.sort();
        assert!(sorted.iter().enumerate().all(|(i, &x)| i == x as usize));
        assert_ne!(order, Rng::new(5, 1).permutation(Stream(0), 1000));
    }
}
