//! The autodiff in ten lines: a tanh layer, its loss, the gradient, and one step of Adam.
//!
//! `cargo run --release --example tape`
//!
//! Everything printed can be checked by hand. With x = (1, 2), W = (0.5, −0.25), b = 0 the layer gives y = tanh(0) = 0; the loss
//! (y − 1)² is 1; its derivative is 2(y − 1)·(1 − y²) = −2 with respect to b, times x with respect to W, times W with respect to x.

mod common;

use common::say;
use dood::{Device, Grads, ParamsBuilder, Tape, Tensor, gradcheck::gradcheck, ops::Activation, optim::Adam};

fn main() {
    // Parameters are declared with their start values and live in one block of memory, here in double precision on the CPU.
    let device = Device::cpu_f64();
    let mut builder = ParamsBuilder::new();
    let w = builder.add("w", &[1, 2], |i| [0.5, -0.25][i]);
    let b = builder.add("b", &[1], |_| 0.0);
    let mut params = builder.build(&device);
    let mut grads = Grads::zeros(&params);

    // A tape records what is computed from them. A `Var` is a value on the tape: `Copy`, with the usual operators.
    let tape = Tape::new(&params);
    let x = tape.input(Tensor::from_f64(&device, &[1, 2], &[1.0, 2.0]));
    let y = x.linear(tape.param(w), tape.param(b), Activation::Tanh);
    let error = y + -1.0;
    let loss = (error * error).sum();

    // Walking the tape backwards adds to the gradients of the parameters, and returns those of the inputs.
    let inputs = tape.backward(loss, &mut grads);
    let show = |name: &str, found: Tensor, by_hand: &[f64]| {
        say!("{name:10} {:?}", found.to_f64());
        assert!(found.to_f64().iter().zip(by_hand).all(|(a, b)| (a - b).abs() < 1e-9), "{name} should be {by_hand:?}");
    };
    show("y", y.value(), &[0.0]);
    show("loss", loss.value(), &[1.0]);
    show("dloss/dW", grads.get(w), &[-2.0, -4.0]);
    show("dloss/db", grads.get(b), &[-2.0]);
    show("dloss/dx", inputs.of(x), &[-1.0, 0.5]);

    // The tape borrows the parameters, so it has to go before they change. The first step of Adam moves every parameter by the
    // learning rate against the sign of its gradient (but for an ε of 1e-8).
    drop(tape);
    Adam::new(&params, &[0.1]).step(&mut params, &grads);
    show("W after", params.get(w), &[0.6, -0.15]);
    show("b after", params.get(b), &[0.1]);

    // The check that every op of the library has to pass: gradients against central differences, at random inputs.
    let worst = gradcheck(&[&[3, 2], &[4, 2], &[4]], |_, x| x[0].linear(x[1], x[2], Activation::Tanh));
    say!("worst relative error of the layer's gradients: {worst:.0e}");
    assert!(worst < 1e-8);
}
