//! Random numbers as tensors, each device drawing its own: the same ones.

use crate::{
    Device, Tensor,
    device::Place,
    gpu::{Arg, Gpu, Launch, args},
    rng::{Rng, Stream},
};
use rand::distr::Distribution;

impl Rng {
    /// Standard normal numbers of the given shape.
    pub fn normal_tensor(&self, device: &Device, stream: Stream, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        if let Place::Gpu(gpu) = device.place() {
            return self.draw(gpu, "normal", Tensor::empty(device, shape), stream);
        }
        Tensor::from_f64(device, shape, &(0..n).map(|i| self.normal(stream, i)).collect::<Vec<_>>())
    }

    /// Uniform numbers in [0,1) of the given shape.
    pub fn uniform_tensor(&self, device: &Device, stream: Stream, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        if let Place::Gpu(gpu) = device.place() {
            return self.draw(gpu, "uniform", Tensor::empty(device, shape), stream);
        }
        Tensor::from_f64(device, shape, &(0..n).map(|i| self.uniform(stream, i)).collect::<Vec<_>>())
    }

    /// Numbers of any distribution of the crates `rand` and `rand_distr`, drawn one after the other by [`Rng::generator`] on the host.
    pub fn tensor(
        &self,
        device: &Device,
        stream: Stream,
        shape: &[usize],
        distribution: impl Distribution<f64>,
    ) -> Tensor {
        let drawn = distribution.sample_iter(self.generator(stream)).take(shape.iter().product());
        Tensor::from_f64(device, shape, &drawn.collect::<Vec<_>>())
    }

    fn draw(&self, gpu: &Gpu, kernel: &'static str, y: Tensor, stream: Stream) -> Tensor {
        let [seed, step, clock] = self.args(gpu);
        gpu.launch(
            "noise",
            kernel,
            Launch::elements(y.len()),
            args![y.out(), seed, step, clock, Arg::Word(stream.0), y.len()],
        );
        y
    }

    /// What a kernel needs to draw the same numbers: the key, the step, and the clock to be added to the step.
    pub(crate) fn args(&self, gpu: &Gpu) -> [Arg; 3] {
        [Arg::Wide(self.seed), Arg::Wide(self.step), Arg::Words(gpu.clock())]
    }
}
