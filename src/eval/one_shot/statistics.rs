//! How far a share of right decisions may be off, and whether two methods differ.

use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959963984540054;

/// A share of right decisions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Right decisions.
    pub right: usize,
    /// All decisions.
    pub of: usize,
    /// The one divided by the other.
    pub share: f64,
    /// Wilson's interval (1927) of 95 % confidence.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Share {
    /// Of at least one decision.
    pub fn of(decisions: impl IntoIterator<Item = bool>) -> Self {
        let (mut right, mut of) = (0, 0);
        decisions.into_iter().for_each(|is_right| {
            right += usize::from(is_right);
            of += 1;
        });
        let (n, z2) = (of as f64, Z * Z);
        let share = right as f64 / n;
        let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n);
        Share { right, of, share, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
    }
}

/// Whether one method is right more often than another on the same decisions: the exact sign test of those that only one of them got right
/// (McNemar).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Decisions that only the first got right.
    pub first: usize,
    /// Decisions that only the second got right.
    pub second: usize,
    /// How likely it is, of methods that are equally good, to differ by so much or more.
    pub p: f64,
}

impl Paired {
    /// Of two methods that decided the same.
    pub fn of(first: &[bool], second: &[bool]) -> Self {
        assert_eq!(first.len(), second.len(), "the methods did not decide the same");
        let only = |a: bool| first.iter().zip(second).filter(|&(x, y)| x != y && *x == a).count();
        let (first, second) = (only(true), only(false));
        let (n, fewer) = (first + second, first.min(second));
        // Logarithms: 2⁻ⁿ is too small for a number.
        let (mut log, mut p) = (-(n as f64) * std::f64::consts::LN_2, 0.0);
        for i in 0..=fewer {
            p += log.exp();
            log += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
        }
        Paired { first, second, p: (2.0 * p).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_wilson() {
        let share = |right: usize, of: usize| Share::of((0..of).map(|i| i < right));
        // 294 of 400 is the paper's 73.5 %. Newcombe (1998), Table I, has the interval of 81 of 263.
        let paper = share(294, 400);
        assert!((paper.share - 0.735).abs() < 1e-12 && (paper.high - paper.low - 0.0862).abs() < 5e-4, "{paper:?}");
        let newcombe = share(81, 263);
        assert!((newcombe.low - 0.2553).abs() < 5e-5 && (newcombe.high - 0.3662).abs() < 5e-5, "{newcombe:?}");
        let (none, all) = (share(0, 20), share(20, 20));
        assert!(none.low == 0.0 && (none.high - 0.1611).abs() < 5e-5 && all.high == 1.0, "{none:?} {all:?}");
    }

    #[test]
    fn the_sign_test_is_exact() {
        let paired = |first: usize, second: usize| {
            let total = first + second + 7;
            let a: Vec<bool> = (0..total).map(|i| i < first || i >= first + second).collect();
            let b: Vec<bool> = (0..total).map(|i| i >= first).collect();
            let paired = Paired::of(&a, &b);
            assert_eq!((paired.first, paired.second), (first, second));
            paired.p
        };
        assert_eq!([paired(0, 0), paired(3, 3)], [1.0, 1.0]);
        assert!((paired(5, 0) - 2.0 / 32.0).abs() < 1e-12);
        // 2·(1 + 10 + 45)/1024.
        assert!((paired(2, 8) - 112.0 / 1024.0).abs() < 1e-12);
        assert!(paired(2000, 0) == 0.0 && paired(1000, 1000) == 1.0);
    }
}
