//! An op of one's own, with a kernel: the activation "snake" (Ziyin, Hartwig and Ueda, 2020), for what repeats itself.
//!
//! `cargo run --release --example own_op [-- DEVICE]` with the device auto (the default), cpu or cuda.

use dood::{
    Device, MathMode, Result, Slot, Tape, Tensor, Var, args,
    extend::{Arg, Kernels, Launch, Op, grad},
    gradcheck::{device_error, gradcheck},
    on_device,
};
use std::{io::Write, process::ExitCode};

/// y = x + sin²(a·x)/a, dy/dx = 1 + sin(2·a·x).
pub struct Snake {
    pub a: f64,
    pub kernels: Kernels,
}

pub const TEXT: &str = "
// One thread per element.
KERNEL snake_fwd(const REAL* x, REAL* y, int n, REAL a) {
    for (long long i = first_element(); i < n; i += element_stride()) {
        REAL s = sin(a * x[i]);
        y[i] = x[i] + s * s / a;
    }
}

KERNEL snake_bwd(const REAL* x, const REAL* dy, REAL* dx, int add_dx, int n, REAL a) {
    for (long long i = first_element(); i < n; i += element_stride()) put(dx, i, dy[i] * (1 + sin(2 * a * x[i])), add_dx);
}
";

// SAFETY: both touch elements below n of tensors that have n.
pub const KERNELS: Kernels = unsafe { Kernels::new("snake", TEXT) };

impl Op for Snake {
    fn name(&self) -> &'static str {
        "snake"
    }

    fn forward(&self, device: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(device, x[0].shape());
        on_device!(device, T => {
            let a = self.a as T;
            for (y, x) in y.slice_mut::<T>().iter_mut().zip(x[0].slice::<T>()) {
                *y = x + (a * x).sin().powi(2) / a;
            }
        }, gpu => {
            let n = y.len();
            gpu.launch_from(&self.kernels, "snake_fwd", Launch::elements(n), args![&x[0], y.out(), n, Arg::Real(self.a)]);
        });
        vec![y]
    }

    fn backward(&self, device: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        on_device!(device, T => {
            let (Some(slot), a) = (&mut dx[0], self.a as T) else { return };
            let terms = x[0].slice::<T>().iter().zip(dy.slice::<T>());
            slot.add::<T>().iter_mut().zip(terms).for_each(|(dx, (x, dy))| *dx += dy * (1.0 + (2.0 * a * x).sin()));
        }, gpu => {
            let ([out, add], n) = (grad(&mut dx[0]), dy.len());
            let args = args![&x[0], dy, out, add, n, Arg::Real(self.a)];
            gpu.launch_from(&self.kernels, "snake_bwd", Launch::elements(n), args);
        });
    }
}

/// Like the methods of the library; anything of one's own can be one, by a trait.
pub trait SnakeExt<'t> {
    /// x + sin²(a·x)/a, elementwise.
    fn snake(self, a: f64) -> Var<'t>;
}

impl<'t> SnakeExt<'t> for Var<'t> {
    #[track_caller]
    fn snake(self, a: f64) -> Var<'t> {
        self.tape().apply(Snake { a, kernels: KERNELS }, &[self])
    }
}

fn run(name: &str) -> Result<()> {
    let device = Device::from_name(name, MathMode::F32)?;
    let tape = Tape::without_params(&device);
    let x = tape.input(Tensor::from_f64(&device, &[3], &[-1.0, 0.0, 1.0]));
    let gradients = gradcheck(&[&[3, 50]], |_, x| x[0].snake(1.3));
    let kernels = device_error(&device, &[&[3, 50]], |_, x| x[0].snake(1.3))?;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "snake of -1, 0, 1 with a = 2: {:.4?}", x.snake(2.0).value().to_f64());
    let _ = writeln!(out, "gradients against finite differences: off by {gradients:.0e}");
    let _ = writeln!(out, "{device} against the CPU in double precision: off by {kernels:.0e}");
    device.check()
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| "auto".into());
    match run(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
