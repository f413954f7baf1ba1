//! The op of `examples/own_op.rs`: its gradients, its kernels on a card or on the stand-in, and that kernels that are wrong are found.
#![cfg(all(unix, feature = "cuda"))]

#[path = "common/stand_in.rs"]
mod stand_in;

#[allow(dead_code)]
#[path = "../examples/own_op.rs"]
mod own_op;

use dood::{
    DType, Device, MathMode,
    extend::Kernels,
    gradcheck::{device_error, gradcheck},
};
use own_op::{KERNELS, Snake, TEXT};

const SHAPE: &[&[usize]] = &[&[7, 90]];

fn error(device: &Device, kernels: Kernels) -> dood::Result<f64> {
    device_error(device, SHAPE, |tape, x| tape.apply(Snake { a: 1.3, kernels }, x))
}

#[test]
fn its_gradients_are_right() {
    assert!(gradcheck(SHAPE, |tape, x| tape.apply(Snake { a: 1.3, kernels: KERNELS }, x)) < 1e-8);
}

#[test]
fn its_kernels_agree_with_the_cpu_and_wrong_ones_are_found() {
    if let Err(why) = stand_in::install() {
        return println!("{why}");
    }
    let _alone = stand_in::alone();
    let planted = |right: &str, wrong: &str| {
        assert!(TEXT.contains(right));
        // SAFETY: as of the text that is right.
        unsafe { Kernels::new("snake", TEXT.replace(right, wrong).leak()) }
    };
    for (dtype, allowed) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
        let device = Device::cuda(0, dtype, MathMode::F32).unwrap();
        let right = error(&device, KERNELS).unwrap();
        assert!(right < allowed, "{right}");
        let of_result = planted("s * s / a", "s * s / a * (REAL)1.01");
        let of_gradient = planted("(1 + sin(2 * a * x[i]))", "(1 + sin(a * x[i]))");
        let of_end = planted("i < n; i += element_stride()) put", "i < n - 1; i += element_stride()) put");
        for (what, wrong) in [("result", of_result), ("gradient", of_gradient), ("end", of_end)] {
            let found = error(&device, wrong).unwrap();
            assert!(found > 1e-3, "{what}: {found}");
        }
        let broken = error(&device, planted("REAL s = sin", "REEL s = sin")).unwrap_err().to_string();
        assert!(broken.contains("kernels/snake.cu does not compile"), "{broken}");
    }
}
