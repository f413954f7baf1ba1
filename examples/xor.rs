//! The smallest network that has something to learn: exclusive or, in forty lines.
//!
//! `cargo run --release --example xor`

mod common;

use common::say;
use dood::{
    Device, Grads, ParamsBuilder, Tape, Tensor,
    nn::{Init, Linear},
    ops::Activation,
    optim::Adam,
};

fn main() {
    // A network is parameters and what is done with them.
    let (device, init) = (Device::cpu(), Init { seed: 1 });
    let mut builder = ParamsBuilder::new();
    let hidden = Linear::new(&mut builder, init, "hidden", 2, 8);
    let last = Linear::new(&mut builder, init, "last", 8, 1);
    let mut params = builder.build(&device);

    let inputs = Tensor::from_f64(&device, &[4, 2], &[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
    let wanted = Tensor::from_f64(&device, &[4, 1], &[0.0, 1.0, 1.0, 0.0]);
    let (mut adam, mut grads) = (Adam::new(&params, &[0.03]), Grads::zeros(&params));
    for update in 1..=300 {
        let tape = Tape::new(&params);
        let x = tape.constant(inputs.clone());
        let answer = last.forward(hidden.forward(x, Activation::Tanh), Activation::None).sigmoid();
        let error = answer - tape.constant(wanted.clone());
        let loss = (error * error).mean();
        grads.clear();
        tape.backward(loss, &mut grads);
        if update % 100 == 0 {
            say!("update {update}: loss {:.5}, answers {:.2?}", loss.value().item(), answer.value().to_f64());
        }
        drop(tape); // it borrows the parameters, which are about to change
        adam.step(&mut params, &grads);
    }
}
