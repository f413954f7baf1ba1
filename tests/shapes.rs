//! Shapes that do not fit are mistakes of the program: the panic names the line that made it, the shapes, and what was wanted.

use dood::{
    Device, Tape, Tensor, Var,
    nn::{BatchNorm, Conv2d, Init, LayerNorm, Linear},
    ops::{Activation, Keep, Moments, Window, concat, stack},
    optim::Adam,
};
use std::{
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
};

/// File, line and sentence of the last panic.
static SAID: Mutex<Option<(String, u32, String)>> = Mutex::new(None);

/// A mistake, and shapes that its sentence has to hold.
type Mistake<'a, 't> = (&'a dyn Fn() -> Var<'t>, &'a [&'a str]);

#[test]
fn the_line_of_the_caller_is_named_with_all_shapes_and_what_was_wanted() {
    panic::set_hook(Box::new(|info| {
        let sentence = info.payload_as_str().unwrap_or_default().to_owned();
        let at = info.location().expect("a place");
        *SAID.lock().unwrap() = Some((at.file().into(), at.line(), sentence));
    }));
    let device = Device::cpu();
    let mut builder = dood::ParamsBuilder::new();
    let (linear, convolution, norm, batch_norm) = (
        Linear::new(&mut builder, Init { seed: 0 }, "linear", 3, 2),
        Conv2d::new(&mut builder, Init { seed: 0 }, "convolution", 2, 4, 3),
        LayerNorm::new(&mut builder, "norm", 3),
        BatchNorm::new(&mut builder, "batch_norm", 3),
    );
    let params = builder.build(&device);
    let tape = Tape::new(&params);
    let tensor = |shape: &[usize]| Tensor::zeros(&device, shape);
    let of = |shape: &[usize]| -> Var { tape.constant(tensor(shape)) };
    let (a, b) = (of(&[2, 3]), of(&[4, 2]));
    let wide = Window { size: 9, stride: 1, padding: 0 };
    let first = line!();
    let mistakes: &[Mistake] = &[
        (&|| a + b, &["[2, 3]", "[4, 2]"]),
        (&|| a - b, &["[2, 3]", "[4, 2]"]),
        (&|| a * b, &["[2, 3]", "[4, 2]"]),
        (&|| a / b, &["[2, 3]", "[4, 2]"]),
        (&|| a.pow_of(b), &["[2, 3]", "[4, 2]"]),
        (&|| a.maximum(b), &["[2, 3]", "[4, 2]"]),
        (&|| a.minimum(b), &["[2, 3]", "[4, 2]"]),
        (&|| a.matmul(b), &["[2, 3]", "[4, 2]"]),
        (&|| a.matmul_nt(b), &["[2, 3]", "[4, 2]"]),
        (&|| a.matmul_tn(b), &["[2, 3]", "[4, 2]"]),
        (&|| of(&[2, 3, 4]).matmul(of(&[5, 4, 1])), &["[2, 3, 4]", "[5, 4, 1]"]),
        (&|| a.matmul(of(&[3])), &["[2, 3]", "[3]"]),
        (&|| a.permute(&[0, 0]), &["[2, 3]", "[0, 0]"]),
        (&|| of(&[3]).transpose(), &["[3]"]),
        (&|| a.slice(1, 2..4), &["[2, 3]", "2..4"]),
        (&|| a.expand(&[4, 3]), &["[2, 3]", "[4, 3]"]),
        (&|| of(&[1, 1, 1, 1, 1, 1, 2]).transpose(), &["[1, 1, 1, 1, 1, 1, 2]"]),
        (&|| a.reshape(&[5]), &["[2, 3]", "[5]"]),
        (&|| a.sum_over(&[2]), &["[2, 3]", "[2]"]),
        (&|| a.mean_over(&[0, 0]), &["[2, 3]", "[0, 0]"]),
        (&|| of(&[2, 0]).max_over(&[1]), &["[2, 0]", "[1]"]),
        (&|| a.gather(&tensor(&[2, 2])), &["[2, 3]", "[2, 2]"]),
        (&|| a.cross_entropy(&tensor(&[3])), &["[2, 3]", "[3]"]),
        (&|| of(&[2, 0, 0]).reshape(&[0, 0]).expand(&[1, 0]), &["[0, 0]", "[1, 0]"]),
        (&|| of(&[1, 2, 5, 5]).conv2d(of(&[4, 3, 3, 3]), of(&[4]), 1, 1), &["[1, 2, 5, 5]", "[4, 3, 3, 3]", "[4]"]),
        (&|| a.max_pool(wide), &["[2, 3]", "size: 9"]),
        (&|| a.average_pool(2), &["[2, 3]", "multiples of 2"]),
        (&|| a.layer_norm(of(&[3]), of(&[2]), 1e-5), &["[2, 3]", "[3]", "[2]"]),
        (&|| a.batch_norm(of(&[3]), of(&[2]), 1e-5).0, &["[2, 3]", "[3]", "[2]"]),
        (&|| of(&[1, 3]).batch_norm(of(&[3]), of(&[3]), 1e-5).0, &["[1, 3]", "two numbers"]),
        (&|| a.batch_norm_by(&Moments::new(&device, 2), of(&[3]), of(&[3]), 1e-5), &["[2, 3]", "[3]", "[2]"]),
        (&|| a.dropout(Keep::Given(tensor(&[2, 2]), 0.5)), &["[2, 3]", "[2, 2]"]),
        (&|| a.linear(of(&[5, 4]), of(&[5]), Activation::None), &["[2, 3]", "[5, 4]", "[5]"]),
        (&|| concat(&[a, b]), &["[2, 3]", "[4, 2]"]),
        (&|| stack(&[a, b]), &["[2, 3]", "[4, 2]"]),
        (&|| linear.forward(b, Activation::Tanh), &["[4, 2]", "[2, 3]"]),
        (&|| convolution.forward(of(&[1, 3, 4, 4])), &["[1, 3, 4, 4]", "[4, 2, 3, 3]"]),
        (&|| norm.forward(b), &["[4, 2]", "[3]"]),
        (&|| batch_norm.forward(b, &Moments::new(&device, 3)), &["[4, 2]", "[3]"]),
        (&|| batch_norm.learn(b, &mut Moments::new(&device, 3)), &["[4, 2]", "[3]"]),
    ];
    let last = line!();
    let mut lines = vec![];
    let mut wrong = vec![];
    for (i, (mistake, shapes)) in mistakes.iter().enumerate() {
        let done = panic::catch_unwind(AssertUnwindSafe(mistake));
        let said = SAID.lock().unwrap().take();
        let Some((file, line, sentence)) = said.filter(|_| done.is_err()) else {
            wrong.push(format!("mistake {i} is none"));
            continue;
        };
        if !file.ends_with("shapes.rs") || !(first..last).contains(&line) {
            wrong.push(format!("mistake {i} is said to be at {file}:{line}: {sentence}"));
        }
        if !sentence.contains("wanted") || !shapes.iter().all(|shape| sentence.contains(shape)) {
            wrong.push(format!("mistake {i} does not say {shapes:?} and what was wanted: {sentence}"));
        }
        lines.push(line);
    }
    drop(panic::take_hook());
    lines.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(lines.len(), mistakes.len(), "each on its own line");
    // Without learning rates for all groups there is nothing to begin with.
    assert!(panic::catch_unwind(|| Adam::new(&params, &[])).is_err());
}
