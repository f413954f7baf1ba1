//! Network pieces: each is a handful of parameter ids and a forward function, so a model is plain `Copy` data.

use crate::{
    ParamId, ParamsBuilder, Tensor, Var,
    ops::{Activation, Keep, Moments, dropout_linear},
    rng::{Rng, Stream},
};
use rand::distr::Distribution;

/// Draws initial values: the same for the same seed and parameter name, whatever else the model holds.
#[derive(Clone, Copy, Debug)]
pub struct Init {
    /// Key of the run.
    pub seed: u64,
}

impl Init {
    fn stream(name: &str) -> Stream {
        // FNV-1a; the top bit keeps these streams apart from the numbered ones.
        let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193));
        Stream(hash | 1 << 31)
    }

    /// Uniform in ±1/√fan_in.
    pub fn uniform(self, name: &str, fan_in: usize) -> impl FnMut(usize) -> f64 + use<> {
        let (rng, stream, bound) = (Rng::new(self.seed, 0), Self::stream(name), 1.0 / (fan_in as f64).sqrt());
        move |i| (2.0 * rng.uniform(stream, i) - 1.0) * bound
    }

    /// N(0, std²).
    pub fn normal(self, name: &str, std: f64) -> impl FnMut(usize) -> f64 + use<> {
        let (rng, stream) = (Rng::new(self.seed, 0), Self::stream(name));
        move |i| rng.normal(stream, i) * std
    }

    /// Any distribution of the crates `rand` and `rand_distr`, drawn one after the other.
    pub fn draw<D: Distribution<f64>>(self, name: &str, distribution: D) -> impl FnMut(usize) -> f64 + use<D> {
        let mut generator = Rng::new(self.seed, 0).generator(Self::stream(name));
        move |_| distribution.sample(&mut generator)
    }
}

/// y = x·Wᵀ + b.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// Weights `[outputs, inputs]` and biases uniform in ±1/√inputs.
    pub fn new(p: &mut ParamsBuilder, init: Init, name: &str, inputs: usize, outputs: usize) -> Self {
        let full = p.full_name(name);
        p.scope(name, |p| Linear {
            weight: p.add("weight", &[outputs, inputs], init.uniform(&format!("{full}.weight"), inputs)),
            bias: p.add("bias", &[outputs], init.uniform(&format!("{full}.bias"), inputs)),
        })
    }

    /// Zero weights and given biases: at first the output does not depend on the input.
    pub fn constant(p: &mut ParamsBuilder, name: &str, inputs: usize, biases: &[f64]) -> Self {
        p.scope(name, |p| Linear {
            weight: p.add("weight", &[biases.len(), inputs], |_| 0.0),
            bias: p.add("bias", &[biases.len()], |i| biases[i]),
        })
    }

    /// x `[N, inputs]` → `[N, outputs]`.
    #[track_caller]
    pub fn forward<'t>(&self, x: Var<'t>, activation: Activation) -> Var<'t> {
        let tape = x.tape();
        x.linear(tape.param(self.weight), tape.param(self.bias), activation)
    }
}

/// How the last layer of an [`Mlp`] starts.
pub enum LastLayer<'a> {
    /// Like the others, with this many outputs.
    Random(usize),
    /// Zero weights and these biases.
    Biases(&'a [f64]),
}

/// Linear layers with tanh between them and none after the last.
#[derive(Clone, Debug)]
pub struct Mlp(Vec<Linear>);

impl Mlp {
    /// `layers` hidden layers of `hidden` units, named `linear0`, `linear1`, …
    pub fn new(
        p: &mut ParamsBuilder,
        init: Init,
        name: &str,
        inputs: usize,
        (hidden, layers): (usize, usize),
        last: LastLayer,
    ) -> Self {
        p.scope(name, |p| {
            let mut stack: Vec<Linear> = (0..layers)
                .map(|i| Linear::new(p, init, &format!("linear{i}"), if i == 0 { inputs } else { hidden }, hidden))
                .collect();
            let name = format!("linear{layers}");
            stack.push(match last {
                LastLayer::Random(outputs) => Linear::new(p, init, &name, hidden, outputs),
                LastLayer::Biases(biases) => Linear::constant(p, &name, hidden, biases),
            });
            Mlp(stack)
        })
    }

    /// x `[N, inputs]` → `[N, outputs]`.
    #[track_caller]
    pub fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let (last, hidden) = self.0.split_last().expect("at least one layer");
        let x = hidden.iter().fold(x, |x, layer| layer.forward(x, Activation::Tanh));
        last.forward(x, Activation::None)
    }
}

/// A GRU cell (section 2.4): gates in the order r, z, n, two bias vectors.
#[derive(Clone, Copy, Debug)]
pub struct Gru {
    input: Linear,
    state: Linear,
}

impl Gru {
    /// All values uniform in ±1/√hidden.
    pub fn new(p: &mut ParamsBuilder, init: Init, name: &str, inputs: usize, hidden: usize) -> Self {
        let full = p.full_name(name);
        p.scope(name, |p| {
            let mut add =
                |kind: &str, shape: &[usize]| p.add(kind, shape, init.uniform(&format!("{full}.{kind}"), hidden));
            let (weight_ih, weight_hh) =
                (add("weight_ih", &[3 * hidden, inputs]), add("weight_hh", &[3 * hidden, hidden]));
            let (bias_ih, bias_hh) = (add("bias_ih", &[3 * hidden]), add("bias_hh", &[3 * hidden]));
            Gru {
                input: Linear { weight: weight_ih, bias: bias_ih },
                state: Linear { weight: weight_hh, bias: bias_hh },
            }
        })
    }

    /// State `[N, hidden]` and input `[N, …]` → the next state `[N, hidden]`.
    #[track_caller]
    pub fn forward<'t>(&self, state: Var<'t>, input: Var<'t>) -> Var<'t> {
        let from_input = self.input.forward(input, Activation::None);
        state.gru_cell(from_input, self.state.forward(state, Activation::None))
    }
}

/// Rows of mean 0 and variance 1, stretched and moved as was learned: see [`Var::layer_norm`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    weight: ParamId,
    bias: ParamId,
}

impl LayerNorm {
    /// For rows of `size` numbers, which are first left as they are.
    pub fn new(p: &mut ParamsBuilder, name: &str, size: usize) -> Self {
        p.scope(name, |p| LayerNorm {
            weight: p.add("weight", &[size], |_| 1.0),
            bias: p.add("bias", &[size], |_| 0.0),
        })
    }

    /// x `[…, size]` → `[…, size]`, with ε = 1e-5.
    #[track_caller]
    pub fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        x.layer_norm(tape.param(self.weight), tape.param(self.bias), 1e-5)
    }
}

/// Channels of mean 0 and variance 1 over a batch, stretched and moved as was learned: see [`Var::batch_norm`].
///
/// It learns with the moments of each batch, which running ones follow; these are used afterwards. They are no parameters: whoever trains
/// has them beside the network.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    weight: ParamId,
    bias: ParamId,
}

impl BatchNorm {
    /// ε, and how far running moments move to those of a batch.
    const EPS: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    /// For `channels` channels, whose normalised values are first left as they are.
    pub fn new(p: &mut ParamsBuilder, name: &str, channels: usize) -> Self {
        p.scope(name, |p| BatchNorm {
            weight: p.add("weight", &[channels], |_| 1.0),
            bias: p.add("bias", &[channels], |_| 0.0),
        })
    }

    /// In training: x `[N, C, …]` → `[N, C, …]` by the moments of x, with ε = 1e-5. `running` moves a tenth of the way to them; it begins
    /// as [`Moments::new`].
    #[track_caller]
    pub fn learn<'t>(&self, x: Var<'t>, running: &mut Moments) -> Var<'t> {
        let (tape, shape) = (x.tape(), x.shape());
        let (y, moments) = x.batch_norm(tape.param(self.weight), tape.param(self.bias), Self::EPS);
        running.follow(&moments, shape.iter().product::<usize>() / shape[1], Self::MOMENTUM);
        y
    }

    /// Afterwards: x `[N, C, …]` → `[N, C, …]` by the running moments.
    #[track_caller]
    pub fn forward<'t>(&self, x: Var<'t>, running: &Moments) -> Var<'t> {
        let tape = x.tape();
        x.batch_norm_by(running, tape.param(self.weight), tape.param(self.bias), Self::EPS)
    }
}

/// A convolution of images with square kernels.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    weight: ParamId,
    bias: ParamId,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// Weights `[outs, ins, size, size]` and biases uniform in ±1/√(ins·size²); stride 1, and so much padding that the resolution stays
    /// what it is, if `size` is odd.
    pub fn new(p: &mut ParamsBuilder, init: Init, name: &str, ins: usize, outs: usize, size: usize) -> Self {
        let full = p.full_name(name);
        let draw = |kind: &str| init.uniform(&format!("{full}.{kind}"), ins * size * size);
        p.scope(name, |p| Conv2d {
            weight: p.add("weight", &[outs, ins, size, size], draw("weight")),
            bias: p.add("bias", &[outs], draw("bias")),
            stride: 1,
            padding: size / 2,
        })
    }

    /// The same with another stride and padding.
    pub fn with(self, stride: usize, padding: usize) -> Self {
        Conv2d { stride, padding, ..self }
    }

    /// Images `[N, ins, H, W]` → `[N, outs, rows, columns]`; see [`Var::conv2d`].
    #[track_caller]
    pub fn forward<'t>(&self, x: Var<'t>) -> Var<'t> {
        let tape = x.tape();
        x.conv2d(tape.param(self.weight), tape.param(self.bias), self.stride, self.padding)
    }
}

/// The image network of section 2.3: two convolutions, dropout, two linear layers.
#[derive(Clone, Copy, Debug)]
pub struct Cnn {
    conv1: Linear,
    conv2: Linear,
    linear0: Linear,
    linear1: Linear,
}

impl Cnn {
    /// For images of `side`² pixels; `channels` are those of the two convolutions, `features` the size of an embedding.
    pub fn new(
        p: &mut ParamsBuilder,
        init: Init,
        name: &str,
        side: usize,
        channels: [usize; 2],
        features: usize,
    ) -> Self {
        let full = p.full_name(name);
        p.scope(name, |p| {
            let mut conv = |name: &str, outs: usize, ins: usize| {
                let draw = |kind: &str| init.uniform(&format!("{full}.{name}.{kind}"), 9 * ins);
                p.scope(name, |p| Linear {
                    weight: p.add("weight", &[outs, ins, 3, 3], draw("weight")),
                    bias: p.add("bias", &[outs], draw("bias")),
                })
            };
            let (conv1, conv2) = (conv("conv1", channels[0], 1), conv("conv2", channels[1], channels[0]));
            let wide = channels[1] * (side - 4) * (side - 4);
            let linear0 = Linear::new(p, init, "linear0", wide, features);
            Cnn { conv1, conv2, linear0, linear1: Linear::new(p, init, "linear1", features, features) }
        })
    }

    /// Images `[N, H, W]` → what the convolutions see in them `[N, C₂·(H−4)·(W−4)]`, before dropout.
    #[track_caller]
    pub fn convolve<'t>(&self, images: Var<'t>, live: Option<&Tensor>) -> Var<'t> {
        let p = |id| images.tape().param(id);
        let (one, two) = (self.conv1, self.conv2);
        images.conv_pair(p(one.weight), p(one.bias), p(two.weight), p(two.bias), live)
    }

    /// Embeddings `[N, features]`, one per call: each call names one of `convolved` and has a dropout mask of its own.
    ///
    /// Rows that are not `live` are skipped; their embedding is a constant that means nothing.
    #[track_caller]
    pub fn embed<'t>(&self, convolved: &[Var<'t>], calls: Vec<(usize, Keep)>, live: Option<&Tensor>) -> Vec<Var<'t>> {
        // Without dropout, calls on the same input are the same: one is enough.
        let mut distinct: Vec<(usize, Keep)> = vec![];
        let index: Vec<usize> = calls
            .into_iter()
            .map(|call| {
                let same = |c: &(usize, Keep)| c.0 == call.0 && matches!((&c.1, &call.1), (Keep::All, Keep::All));
                distinct.iter().position(same).unwrap_or_else(|| {
                    distinct.push(call);
                    distinct.len() - 1
                })
            })
            .collect();
        let tape = convolved[0].tape();
        let (w, b) = (tape.param(self.linear0.weight), tape.param(self.linear0.bias));
        let hidden = dropout_linear(convolved, distinct, w, b, Activation::Tanh, live);
        let all = self.linear1.forward(hidden, Activation::None);
        if index.len() == 1 {
            return vec![all];
        }
        let n = convolved[0].shape()[0];
        index.into_iter().map(|i| all.rows(i * n, n)).collect()
    }
}
