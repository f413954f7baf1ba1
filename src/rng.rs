//! Counter-based random numbers (Philox4x32-10): a function of (seed, stream, step, element) and nothing else. Every device draws
//! the same ones in any order, a run is reproducible from its seed, and a resumed run needs no saved generator.

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
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02, "normal: {mean} {var}");
        let (mean, var) = moments(&|i| rng.uniform(Stream(3), i));
        assert!((mean - 0.5).abs() < 0.01 && (var - 1.0 / 12.0).abs() < 0.002, "uniform: {mean} {var}");
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
