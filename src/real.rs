//! The two scalar types of the CPU backend. Only op files see this trait.

use crate::DType;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`. The `f32` transcendental functions are branch-free polynomials, so loops over them vectorise.
pub trait Real:
    bytemuck::Pod
    + Send
    + Sync
    + PartialOrd
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + std::iter::Sum
{
    /// The run-time name of this type.
    const DTYPE: DType;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest value of this type.
    fn of(x: f64) -> Self;
    /// The value in double precision.
    fn f64(self) -> f64;
    /// `self · b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// eˣ; in `f32` with an error of about one unit in the last place, results below 2.5e-38 are 0.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// log(1 + x), without loss near 0.
    fn ln_1p(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// xᵃ.
    fn powf(self, a: Self) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// The largest integer not above x.
    fn floor(self) -> Self;
    /// Whether x is neither infinite nor NaN.
    fn is_finite(self) -> bool;

    /// The logistic function 1 / (1 + e⁻ˣ).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
    /// d σ(x) / d x, without the cancellation of 1 − σ for large x.
    #[inline(always)]
    fn sigmoid_slope(self) -> Self {
        let t = (-self.abs()).exp();
        t / ((Self::ONE + t) * (Self::ONE + t))
    }
    /// log(1 + eˣ).
    #[inline(always)]
    fn softplus(self) -> Self {
        self.larger(Self::ZERO) + (-self.abs()).exp().ln_1p()
    }
    /// The larger of two numbers that are not NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    /// x limited to `[low, high]`.
    #[inline(always)]
    fn limit(self, low: Self, high: Self) -> Self {
        if self < low {
            low
        } else if self > high {
            high
        } else {
            self
        }
    }
}

macro_rules! real {
    ($t:ident, $dtype:ident, $exp:expr, $tanh:expr) => {
        impl Real for $t {
            const DTYPE: DType = DType::$dtype;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $t::mul_add(self, b, c)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn ln_1p(self) -> Self {
                $t::ln_1p(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn powf(self, a: Self) -> Self {
                $t::powf(self, a)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn floor(self) -> Self {
                $t::floor(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
        }
    };
}
real!(f32, F32, exp_f32, tanh_f32);
real!(f64, F64, f64::exp, f64::tanh);

/// eˣ = 2ⁿ·eʳ with n = round(x/ln 2), |r| ≤ ln2/2, and eʳ by its Taylor polynomial of degree 7.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves n in the low bits of the sum; shifted by 23 they become the exponent of 2ⁿ.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x_in = if x < 88.7 { x } else { 88.7 };
    let t = x_in.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x_in));
    let mut p = 1.0 / 5040.0f32;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0f32] {
        p = p.mul_add(r, c);
    }
    // n can be 128 just below the overflow threshold, so 2ⁿ is applied as 2·2ⁿ⁻¹.
    let half = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f00_0000));
    let y = p * half * 2.0;
    let y = if x < -86.6 { 0.0 } else { y };
    let y = if x > 88.72 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// tanh by an odd polynomial near 0 and 1 − 2/(e²ˣ + 1) elsewhere.
#[inline(always)]
fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp_f32(2.0 * a) + 1.0);
    let s = x * x;
    let mut p = -5.704_988_7e-3f32;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1f32] {
        p = p.mul_add(s, c);
    }
    let near = (p * s).mul_add(x, x);
    if a < 0.625 { near } else { far.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place of the exact result over `n` points of `[low, high]`.
    fn worst(low: f64, high: f64, ours: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let n = 200_000;
        (0..=n).fold(0.0, |worst: f64, i| {
            let x = (low + (high - low) * i as f64 / n as f64) as f32;
            let truth = exact(x as f64);
            let ulp = (truth.abs() as f32).to_bits().max(1 << 23);
            let ulp = f32::from_bits(ulp + 1) as f64 - f32::from_bits(ulp) as f64;
            worst.max((ours(x) as f64 - truth).abs() / ulp)
        })
    }

    #[test]
    fn f32_exp_and_tanh_are_within_a_few_units_in_the_last_place() {
        assert!(worst(-86.6, 88.7, exp_f32, f64::exp) < 1.5);
        assert!(worst(-1.0, 1.0, exp_f32, f64::exp) < 1.5);
        assert!(worst(-10.0, 10.0, tanh_f32, f64::tanh) < 2.5);
        assert!(worst(-0.7, 0.7, tanh_f32, f64::tanh) < 2.5);
    }

    #[test]
    fn single_precision_keeps_the_slope_of_saturated_outputs() {
        for a in [-30.0f32, -9.0, 0.3, 9.0, 18.0, 30.0] {
            let exact = (a as f64).sigmoid_slope();
            assert!((a.sigmoid_slope() as f64 / exact - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn f32_exp_and_tanh_keep_the_special_values() {
        assert_eq!((exp_f32(-200.0), exp_f32(f32::NEG_INFINITY), exp_f32(f32::INFINITY)), (0.0, 0.0, f32::INFINITY));
        assert_eq!((exp_f32(0.0), exp_f32(100.0)), (1.0, f32::INFINITY));
        assert!(exp_f32(f32::NAN).is_nan() && tanh_f32(f32::NAN).is_nan());
        assert_eq!((tanh_f32(0.0), tanh_f32(50.0), tanh_f32(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
    }
}
