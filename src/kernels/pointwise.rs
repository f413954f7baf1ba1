//! Functions of one number, or of two, each written once: the same line is compiled for the CPU, and printed in front of
//! `kernels/pointwise.cu`.

use crate::real::Real;
use std::fmt::Write;

/// `Name "name": f(x, a), ∂f/∂x, ∂f/∂a;` with y for the result. Without ∂f/∂a, a is no input. What is written must be both Rust and
/// C++: constants are `T::ZERO` and `T::ONE`, functions are those of [`functions`].
macro_rules! table {
    (|$x:ident, $a:ident, $y:ident| $($(#[$doc:meta])* $name:ident $word:literal: $f:expr, $dx:expr $(, $da:expr)?;)*) => {
        /// One of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Function {
            $($(#[$doc])* $name,)*
        }

        impl Function {
            #[cfg(test)]
            pub const ALL: &[Function] = &[$(Function::$name),*];

            /// What the op is called.
            pub fn name(self) -> &'static str {
                match self { $(Function::$name => $word),* }
            }

            /// y = f(x, a); a is one number or as many.
            #[inline(always)]
            #[allow(unused_variables)]
            pub fn values<T: Real>(self, x: &[T], a: &[T], y: &mut [T]) {
                use functions::*;
                match self {
                    $(Function::$name => each(y, #[inline(always)] |i| { let ($x, $a) = (x[i], of(a, i)); $f }),)*
                }
            }

            /// The slope with respect to x.
            #[inline(always)]
            #[allow(unused_variables)]
            pub fn slopes<T: Real>(self, x: &[T], a: &[T], y: &[T], out: &mut [T]) {
                use functions::*;
                match self {
                    $(Function::$name => each(out, #[inline(always)] |i| { let ($x, $a, $y) = (x[i], of(a, i), y[i]); $dx }),)*
                }
            }

            /// The slope with respect to a.
            #[inline(always)]
            #[allow(unused_variables)]
            pub fn slopes_of_second<T: Real>(self, x: &[T], a: &[T], y: &[T], out: &mut [T]) {
                use functions::*;
                match self {
                    $($(Function::$name => each(out, #[inline(always)] |i| { let ($x, $a, $y) = (x[i], of(a, i), y[i]); $da }),)?)*
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("{} of one input", self.name()),
                }
            }
        }

        /// The same as CUDA: `value`, `slope` and `slope_of_second`, which take the number of a function first.
        pub(super) fn text() -> String {
            let mut text = String::from("struct T {\n    static constexpr REAL ZERO = 0, ONE = 1;\n};\n");
            text += "__device__ __forceinline__ REAL choose(bool first, REAL a, REAL b) { return first ? a : b; }\n";
            text += "__device__ __forceinline__ REAL step(REAL x) { return x > 0 ? (REAL)1 : x < 0 ? (REAL)0 : (REAL)0.5; }\n";
            let mut function = |name: &str, cases: &[(Function, &str)]| {
                let _ = write!(text, "__device__ __forceinline__ REAL {name}(int f, REAL {}, REAL {}, REAL {}) {{\n    switch (f) {{\n",
                    stringify!($x), stringify!($a), stringify!($y));
                for (f, formula) in cases {
                    let _ = writeln!(text, "        case {}: return {formula};  // {}", *f as i32, f.name());
                }
                text += "    }\n    return 0;\n}\n";
            };
            function("value", &[$((Function::$name, stringify!($f))),*]);
            function("slope", &[$((Function::$name, stringify!($dx))),*]);
            function("slope_of_second", &[$($((Function::$name, stringify!($da)),)?)*]);
            text
        }
    };
}

table! { |x, a, y|
    /// max(x, 0), the rectifier; its slope at 0 is 0.
    Relu "relu": choose(x > T::ZERO, x, T::ZERO), choose(x > T::ZERO, T::ONE, T::ZERO);
    /// 1/(1 + e⁻ˣ).
    Sigmoid "sigmoid": sigmoid(x), sigmoid_slope(x);
    /// Hyperbolic tangent.
    Tanh "tanh": tanh(x), T::ONE - y * y;
    /// eˣ.
    Exp "exp": exp(x), y;
    /// Natural logarithm.
    Log "log": log(x), T::ONE / x;
    /// √x.
    Sqrt "sqrt": sqrt(x), T::ONE / (y + y);
    /// |x|; its slope at 0 is 0.
    Abs "abs": fabs(x), choose(x > T::ZERO, T::ONE, choose(x < T::ZERO, -T::ONE, T::ZERO));
    /// xᵃ with a number a.
    PowNumber "pow": pow(x, a), choose(a == T::ZERO, T::ZERO, a * pow(x, a - T::ONE));
    /// xᵃ.
    Pow "pow": pow(x, a), choose(a == T::ZERO, T::ZERO, a * pow(x, a - T::ONE)), choose(y == T::ZERO, T::ZERO, y * log(x));
    /// x/a.
    Div "div": x / a, T::ONE / a, -y / a;
    /// The larger of both; where they are equal, half of the gradient goes to either.
    Maximum "maximum": choose(x < a, a, x), step(x - a), step(a - x);
    /// The smaller of both; where they are equal, half of the gradient goes to either.
    Minimum "minimum": choose(x > a, a, x), step(a - x), step(x - a);
}

/// What formulas may use, as CUDA calls it.
mod functions {
    use crate::real::Real;

    #[inline(always)]
    pub fn choose<T: Real>(first: bool, a: T, b: T) -> T {
        if first { a } else { b }
    }

    /// 1 above 0, 0 below, and a half at 0.
    #[inline(always)]
    pub fn step<T: Real>(x: T) -> T {
        choose(x > T::ZERO, T::ONE, choose(x < T::ZERO, T::ZERO, T::of(0.5)))
    }

    macro_rules! methods {
        ($($name:ident $method:ident)*) => { $(#[inline(always)] pub fn $name<T: Real>(x: T) -> T { x.$method() })* };
    }
    methods! { sigmoid sigmoid  sigmoid_slope sigmoid_slope  tanh tanh  exp exp  log ln  sqrt sqrt  fabs abs }

    #[inline(always)]
    pub fn pow<T: Real>(x: T, a: T) -> T {
        x.powf(a)
    }
}

/// Element i of `a`, or its only one.
#[inline(always)]
fn of<T: Copy>(a: &[T], i: usize) -> T {
    if let &[one] = a { one } else { a[i] }
}

#[inline(always)]
fn each<T>(out: &mut [T], f: impl Fn(usize) -> T) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = f(i));
}
