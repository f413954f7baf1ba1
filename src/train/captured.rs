//! Steps on a GPU: the data set lies there, a step is captured once as a CUDA graph and replayed, and the host reads one small table
//! when it wants to know how it went.
//!
//! Everything that changes from step to step is on the device: the order of the images, the running statistics of the learning
//! signal, and the clock, from which random numbers, Adam and the place in the epoch follow. What is captured by value (batch size,
//! learning rates) makes another graph when it changes.

use super::{ORDER, Report, Trainer};
use crate::{
    Error, Result, Tape, Tensor,
    gpu::{Arg, Block, Gpu, Graph, GraphSize, Launch, args},
    model::{
        Dropout, GROUPS, Noise, Step,
        objective::{Loss, Terms, Totals},
    },
    profile,
    rng::Rng,
};
use std::{cell::OnceCell, sync::Arc};

/// Rows of the table of reports, so the most steps between two looks at it.
const ROWS: usize = 1024;
/// What a row has behind its totals: the loss, the norm of the gradient, and whether the step changed anything.
const BEHIND: usize = 3;
/// Blocks that share the sum of the squares of the gradient.
const PARTS: usize = 512;

/// What lies on the GPU for the whole run.
pub(super) struct OnGpu {
    gpu: Arc<Gpu>,
    /// All images, `[count, H, W]` bytes.
    images: Block,
    /// Their order in the current epoch.
    order: Block,
    epoch: u64,
    /// The table, and how its columns are added up; made by the first step.
    ring: OnceCell<(Tensor, Totals<Vec<f64>>)>,
    /// 1 until the first loss or gradient that is not finite.
    healthy: Tensor,
    captured: Option<Captured>,
    capture: bool,
}

struct Captured {
    graph: Graph,
    /// The update that was captured.
    at: u64,
    rates: [f64; GROUPS.len()],
}

impl Trainer {
    /// Makes `n` updates; on a GPU they are replays of a captured step, and the host waits only at the end.
    ///
    /// # Errors
    /// [`Error::NotFinite`] as for [`Trainer::step`]; the updates before the one that failed are kept. [`Error::Device`] and
    /// [`Error::DeviceMemory`] from a GPU.
    pub fn run_steps(&mut self, n: usize) -> Result<Vec<Report>> {
        let Some(mut on_gpu) = self.take_gpu()? else { return (0..n).map(|_| self.step_on_host()).collect() };
        let done = self.run_on(&mut on_gpu, n);
        self.on_gpu = Some(on_gpu);
        done
    }

    /// Runs every step op by op, without capturing it: for comparison, and to find the op that fails.
    pub fn set_capture(&mut self, capture: bool) -> Result<()> {
        if let Some(mut on_gpu) = self.take_gpu()? {
            on_gpu.capture = capture;
            self.on_gpu = Some(on_gpu);
        }
        Ok(())
    }

    /// The captured step, if there is one.
    pub fn graph(&self) -> Option<GraphSize> {
        self.on_gpu.as_ref()?.captured.as_ref().map(|c| c.graph.size())
    }

    /// What lies on the GPU, put there if it is not yet; `None` on the CPU.
    fn take_gpu(&mut self) -> Result<Option<OnGpu>> {
        if let Some(found) = self.on_gpu.take() {
            return Ok(Some(found));
        }
        let device = self.params.device().clone();
        let Some(gpu) = device.gpu().cloned() else { return Ok(None) };
        gpu.enter("the data set");
        let on_gpu = OnGpu {
            images: gpu.store(&self.images.pixels),
            order: gpu.store(&vec![0; 4 * self.images.len()]),
            epoch: u64::MAX,
            ring: OnceCell::new(),
            healthy: Tensor::full(&device, &[1], 1.0),
            captured: None,
            capture: !profile::is_on(),
            gpu,
        };
        device.check()?;
        Ok(Some(on_gpu))
    }

    fn run_on(&mut self, on: &mut OnGpu, n: usize) -> Result<Vec<Report>> {
        let mut reports = Vec::with_capacity(n);
        while reports.len() < n {
            let first = self.running.iteration;
            let steps = self.burst(on, (n - reports.len()).min(ROWS))?;
            on.gpu.check()?;
            let (ring, factors) = on.ring.get().expect("a step was made");
            let (table, columns) = (ring.to_f64(), ring.shape()[1]);
            for at in first..first + steps as u64 {
                let row = &table[(at % ROWS as u64) as usize * columns..][..columns];
                let (totals, behind) = row.split_at(columns - BEHIND);
                if behind[2] == 0.0 {
                    return Err(self.find_culprit(on, at));
                }
                let mut totals = totals.iter();
                let totals = factors.clone().map(|factors| factors.iter().zip(&mut totals).map(|(f, x)| f * x).sum());
                reports.push(Report::new(behind[0], behind[1], &totals, self.images_at(at)));
            }
        }
        Ok(reports)
    }

    /// Launches up to `most` updates of the current epoch, and returns how many.
    fn burst(&mut self, on: &mut OnGpu, most: usize) -> Result<usize> {
        let (count, batch) = (self.images.len(), self.settings.batch);
        let per_epoch = count.div_ceil(batch) as u64;
        let at = self.running.iteration;
        let (epoch, within) = (at / per_epoch, (at % per_epoch) as usize);
        if on.epoch != epoch {
            let order = Rng::new(self.settings.seed, epoch).permutation(ORDER, count);
            on.gpu.upload(&on.order, bytemuck::cast_slice(&order));
            on.epoch = epoch;
        }
        let whole = count / batch;
        if within >= whole {
            // The rest of an epoch is a batch of its own size, seldom enough to do without a graph.
            self.launch_step(on, count - within * batch)?;
            return Ok(1);
        }
        if on.captured.as_ref().is_some_and(|c| c.rates != self.settings.rates) {
            on.captured = None;
        }
        if on.captured.is_none() {
            // The first update sets the running statistics, which no other does, so it is not the one to be captured.
            self.launch_step(on, batch)?;
            if on.capture && self.running.iteration > 0 && most > 1 && within + 1 < whole {
                on.captured = Some(self.capture_step(on, batch)?);
            }
            return Ok(1);
        }
        let times = most.min(whole - within);
        let captured = on.captured.as_mut().expect("there is one");
        captured.graph.replay(at - captured.at, times)?;
        self.advance(times as u64);
        Ok(times)
    }

    /// The step that comes next, as a graph.
    fn capture_step(&mut self, on: &OnGpu, batch: usize) -> Result<Captured> {
        let (at, rates) = (self.running.iteration, self.settings.rates);
        let graph = on.gpu.capture(|| self.record(on, batch))?;
        Ok(Captured { graph, at, rates })
    }

    fn advance(&mut self, steps: u64) {
        self.running.iteration += steps;
        self.adam.set_steps(self.running.iteration);
    }

    /// One update, op by op.
    fn launch_step(&mut self, on: &OnGpu, batch: usize) -> Result<()> {
        self.record(on, batch);
        match on.gpu.check() {
            Ok(()) => {
                self.advance(1);
                Ok(())
            }
            Err(Error::DeviceMemory { op, asked, free, total, held, .. }) => {
                let (needed, available) = on.gpu.demand();
                // Slightly less than what would just fit, as memory comes in pieces.
                let fitting = (batch as f64 * 0.95 * available as f64 / needed.max(1) as f64) as usize;
                Err(Error::DeviceMemory { op, asked, free, total, held, fitting: Some(fitting.min(batch - 1)) })
            }
            Err(error) => Err(error),
        }
    }

    /// How many images update `at` is made with.
    fn images_at(&self, at: u64) -> usize {
        let (count, batch) = (self.images.len(), self.settings.batch);
        let within = (at % count.div_ceil(batch) as u64) as usize;
        batch.min(count - within * batch)
    }

    fn recognise_and_lose<'t>(&self, on: &OnGpu, tape: &'t Tape<'t>, batch: usize) -> (Vec<Step<'t>>, Loss<'t>) {
        let (device, side) = (self.params.device(), self.images.side);
        let (gpu, pixels, stride) = (&on.gpu, side * side, self.settings.batch);
        let at = self.running.iteration;
        let x = Tensor::empty(device, &[batch, side, side]);
        gpu.enter("gather");
        gpu.launch(
            "batch",
            "gather",
            Launch::elements(batch * pixels),
            args![
                Arg::Bytes(on.images.span()),
                Arg::Words(on.order.span()),
                x.out(),
                Arg::Wide(at),
                Arg::Words(gpu.clock()),
                Arg::Word(self.images.len().div_ceil(stride) as u32),
                stride,
                batch,
                pixels,
            ],
        );
        let x = self.shown(x, at);
        let rng = Rng::new(self.settings.seed, at);
        let noise = Noise::draw(&self.model, device, batch, rng);
        let steps = self.model.recognise(tape, &x, &self.model.lesson(noise, Dropout::Random(rng)));
        let loss = self.model.loss(&x, &steps, &self.running);
        (steps, loss)
    }

    /// Everything that one update launches.
    fn record(&mut self, on: &OnGpu, batch: usize) {
        let device = self.params.device().clone();
        let (gpu, at) = (&on.gpu, self.running.iteration);
        let tape = Tape::new(&self.params);
        let (steps, loss) = self.recognise_and_lose(on, &tape, batch);
        self.grads.clear();
        tape.backward(loss.loss, &mut self.grads);

        gpu.enter("report");
        let slab = self.grads.slab();
        let squares = Tensor::empty(&device, &[PARTS]);
        gpu.launch("report", "square_sums", Launch::rows(PARTS, 256), args![slab, squares.out(), slab.len()]);
        let mut values = vec![];
        let factors = self.model.totals(&loss, &steps).map(|terms: Terms| -> Vec<f64> {
            values.extend(terms.iter().map(|(_, value)| value.value().reshape(&[batch])));
            terms.iter().map(|(factor, _)| *factor).collect()
        });
        let columns = values.len();
        let (ring, _) = on.ring.get_or_init(|| (Tensor::zeros(&device, &[ROWS, columns + BEHIND]), factors));
        let (clock, rows) = (Arg::Words(gpu.clock()), Arg::Word(ROWS as u32));
        let arguments = args![&Tensor::stack(&values), ring.out(), columns, batch, Arg::Wide(at), clock, rows];
        gpu.launch("report", "totals", Launch::rows(columns, 256), arguments);
        let (loss_value, healthy) = (loss.loss.value(), &on.healthy);
        let arguments =
            args![&loss_value, &squares, ring.out(), healthy.out(), PARTS, columns, Arg::Wide(at), clock, rows];
        gpu.launch("report", "verdict", Launch::rows(1, 256), arguments);
        if let Some(nvil) = &loss.nvil {
            let statistics = &self.running.statistics;
            let arguments = args![&nvil.advantage.running, healthy, statistics.out(), statistics.len()];
            gpu.launch("report", "keep", Launch::rows(1, 32), arguments);
        }
        drop((steps, loss));
        drop(tape);
        gpu.enter("adam");
        self.adam.set_steps(at);
        self.adam.step_if(&mut self.params, &self.grads, Some(&on.healthy));
    }

    /// Goes back to the update that failed, which changed nothing, and makes it again to see what is not finite.
    fn find_culprit(&mut self, on: &mut OnGpu, at: u64) -> Error {
        self.running.iteration = at;
        self.adam.set_steps(at);
        on.healthy.send([1.0].into_iter());
        let tape = Tape::new(&self.params);
        let (_, loss) = self.recognise_and_lose(on, &tape, self.images_at(at));
        if loss.loss.value().is_finite() {
            self.grads.clear();
            tape.backward(loss.loss, &mut self.grads);
            let bad = |spec: &&crate::Spec| !self.grads.slab().window(spec.range().start, &spec.shape).is_finite();
            let name = self.params.specs().iter().find(bad).map_or("a parameter", |spec| &spec.name);
            return self.not_finite(format!("the gradient of {name}"));
        }
        self.not_finite(self.culprit(&tape))
    }
}
