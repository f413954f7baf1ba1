//! The lines in burn, with its backend flex.

use crate::{BATCH, CLASSIFIER, Lines, RATE, values};
use burn::{
    module::{Module, Param},
    nn::{Dropout, DropoutConfig, loss::CrossEntropyLossConfig},
    optim::{AdamConfig, GradientsParams},
    tensor::{
        Device, Gradients, Int, Tensor, TensorData, activation,
        module::{conv2d, max_pool2d},
        ops::{ConvOptions, MaxPoolOptions},
    },
};

fn tensor<const D: usize>(shape: [usize; D], key: usize, scale: f64, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(shape.iter().product(), key, scale), shape), device)
}

fn flat<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("single precision")
}

fn flat_gradient<const D: usize>(x: &Tensor<D>, grads: &Gradients) -> Vec<f32> {
    flat(x.grad(grads).expect("a gradient"))
}

/// A function of inputs of these shapes, in its line.
macro_rules! line {
    ($lines:expr, $name:expr, |$($x:ident: $shape:tt),+| $y:expr) => {{
        let f = |($($x,)+)| $y;
        let (plain, device) = (Device::flex(), Device::flex().autodiff());
        let mut key = 0..;
        let plain = ($(tensor($shape, key.next().expect("endless"), 1.0, &plain),)+);
        let mut key = 0..;
        let tracked = ($(tensor($shape, key.next().expect("endless"), 1.0, &device).require_grad(),)+);
        let y = f(tracked.clone());
        let mut results = vec![flat(y.clone().without_autodiff())];
        let grads = (y.clone() * y).sum().backward();
        let ($($x,)+) = &tracked;
        results.extend([$(flat_gradient($x, &grads)),+]);
        $lines.line($name, || drop(std::hint::black_box(f(plain.clone()))), || f(tracked.clone()), |y| y.backward(), results);
    }};
}

pub fn all(lines: &Lines) {
    line!(lines, "matmul 512", |a: [512, 512], b: [512, 512]| Tensor::matmul(a, b));
    line!(lines, "matmul 64x1024x1024", |a: [64, 1024], b: [1024, 1024]| Tensor::matmul(a, b));
    line!(lines, "conv2d 1-16", |x: [BATCH, 1, 28, 28], w: [16, 1, 3, 3], b: [16]| convolution(x, w, b));
    line!(lines, "conv2d 16-32", |x: [BATCH, 16, 14, 14], w: [32, 16, 3, 3], b: [32]| convolution(x, w, b));
    line!(lines, "max_pool", |x: [BATCH, 16, 28, 28]| max_pool2d(x, MaxPoolOptions::new([2, 2])));
    line!(lines, "softmax", |x: [BATCH, 10, 1000]| activation::softmax::<3>(x, 2));
    classifier(lines);
}

fn convolution(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>) -> Tensor<4> {
    conv2d(x, w, Some(b), ConvOptions::new([1, 1], [1, 1], [1, 1], 1))
}

#[derive(Module, Debug)]
struct Classifier {
    convolutions: [(Param<Tensor<4>>, Param<Tensor<1>>); 2],
    linears: [(Param<Tensor<2>>, Param<Tensor<1>>); 2],
    dropouts: [Dropout; 2],
}

impl Classifier {
    fn new(device: &Device) -> Self {
        let bias = |key: usize| {
            let (shape, scale) = CLASSIFIER[key];
            Param::from_tensor(tensor([shape[0]], key, scale, device))
        };
        let convolution = |key: usize| {
            let (shape, scale) = CLASSIFIER[key];
            let shape = shape.try_into().expect("four numbers");
            (Param::from_tensor(tensor::<4>(shape, key, scale, device)), bias(key + 1))
        };
        // Its linear maps are [in, out].
        let linear = |key: usize| {
            let (shape, scale) = CLASSIFIER[key];
            let shape: [usize; 2] = shape.try_into().expect("two numbers");
            let by_input = flat(tensor(shape, key, scale, device).transpose());
            let weight = Tensor::from_data(TensorData::new(by_input, [shape[1], shape[0]]), device);
            (Param::from_tensor(weight), bias(key + 1))
        };
        Classifier {
            convolutions: [convolution(0), convolution(2)],
            linears: [linear(4), linear(6)],
            dropouts: [0.25, 0.5].map(|rate| DropoutConfig::new(rate).init()),
        }
    }

    fn scores(&self, x: Tensor<4>, learning: bool) -> Tensor<2> {
        let drop = |i: usize, x: Tensor<2>| if learning { self.dropouts[i].forward(x) } else { x };
        let linear = |i: usize, x: Tensor<2>| {
            burn::tensor::module::linear(x, self.linears[i].0.val(), Some(self.linears[i].1.val()))
        };
        let x = self.convolutions.iter().fold(x, |x, (w, b)| {
            activation::relu(max_pool2d(convolution(x, w.val(), b.val()), MaxPoolOptions::new([2, 2])))
        });
        let features = activation::relu(linear(0, drop(0, x.flatten(1, 3))));
        linear(1, drop(1, features))
    }

    /// In the order of [`CLASSIFIER`], and as there.
    fn gradients(&self, grads: &Gradients) -> Vec<Vec<f32>> {
        let of_convolutions = self
            .convolutions
            .iter()
            .flat_map(|(w, b)| [flat_gradient(&w.val(), grads), flat_gradient(&b.val(), grads)]);
        let of_linears = self.linears.iter().flat_map(|(w, b)| {
            [flat(w.val().grad(grads).expect("a gradient").transpose()), flat_gradient(&b.val(), grads)]
        });
        of_convolutions.chain(of_linears).collect()
    }
}

fn classifier(lines: &Lines) {
    let device = Device::flex().autodiff();
    let mut classifier = Classifier::new(&device);
    let x = tensor([BATCH, 1, 28, 28], 8, 1.0, &device);
    let labels: Vec<i64> = (0..BATCH as i64).map(|i| i % 10).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [BATCH]), &device);
    let cross_entropy = CrossEntropyLossConfig::new().init(&device);
    let first = cross_entropy.forward(classifier.scores(x.clone(), false), labels.clone());
    let mut results = vec![flat(first.clone().without_autodiff())];
    results.extend(classifier.gradients(&first.backward()));
    let mut adam = AdamConfig::new().with_epsilon(1e-8).init();
    let step = || {
        let loss = cross_entropy.forward(classifier.scores(x.clone(), true), labels.clone());
        let grads = GradientsParams::from_grads(loss.backward(), &classifier);
        classifier = adam.step(RATE, classifier.clone(), grads);
        assert!(loss.into_scalar::<f32>().is_finite());
    };
    lines.step("classify step", step, results);
}
