//! Updates on a GPU: the data set lies there, an update is captured once and replayed ([`Replay`]), and the host reads one small table
//! when it wants to know how it went.
//!
//! Everything that changes from step to step is on the device: the order of the images, the running statistics of the learning
//! signal, and the clock, from which random numbers, Adam and the place in the epoch follow. What is captured by value (batch size,
//! learning rates) makes another graph when it changes.

use super::{ORDER, Report, Trainer, differentiate};
use crate::{
    Error, Result, Tape, Tensor,
    gpu::{Arg, Block, Gpu, GraphSize, Launch, Span, args},
    model::{
        GROUPS, Step,
        objective::{Loss, Terms, Totals},
    },
    ranks::{Phase, Ranks},
    replay::Replay,
    rng::Rng,
};
use serde_json::json;
use std::{cell::OnceCell, ops::Range, sync::Arc};

/// Rows of the table of reports, so the most steps between two looks at it.
const ROWS: usize = 1024;
/// What a row has behind its totals: the loss, the norm of the gradient, and whether the step changed anything.
const BEHIND: usize = 3;
/// The least bytes of gradients that are summed over GPUs at once: less takes about as long.
const BUCKET: usize = 4 << 20;
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
    replay: Replay,
    /// The rates of the update that is replayed.
    rates: [f64; GROUPS.len()],
}

/// The part of a batch that is computed here.
struct Part {
    /// Which images of the batch.
    rows: Range<usize>,
    /// How many images the batch has on all GPUs.
    batch: usize,
    /// The share of the loss here in that of the batch.
    weight: f64,
    /// What totals over the images here are multiplied with.
    counted: f64,
}

impl Part {
    /// Of a batch, the part of rank `rank` of `ranks`. A batch that has not an image for each is computed by all of them.
    fn of(batch: usize, rank: usize, ranks: usize) -> Self {
        if batch < ranks || ranks == 1 {
            let share = 1.0 / ranks as f64;
            return Part { rows: 0..batch, batch, weight: share, counted: share };
        }
        let from = |rank: usize| batch * rank / ranks;
        let rows = from(rank)..from(rank + 1);
        Part { weight: rows.len() as f64 / batch as f64, rows, batch, counted: 1.0 }
    }
}

impl Trainer {
    /// Makes this trainer one of those of `ranks`, all of which have the same settings and images: from here on each computes a part of
    /// every batch, and all make the same updates. A rank that fails ends the others.
    ///
    /// # Errors
    /// [`Error::Ranks`] if ranks do not go together or cannot be connected, [`Error::Usage`] on the CPU.
    pub fn join(&mut self, ranks: &Arc<Ranks>) -> Result<()> {
        let device = self.params.device().clone();
        let Some(gpu) = device.gpu() else {
            return Err(Error::Usage("several ranks need a GPU each; --threads is for the CPU".into()));
        };
        ranks.agree(&json!({
            "settings": self.settings,
            "model": self.model.config,
            "precision": format!("{:?}", device.dtype()),
            "math": gpu.math().to_string(),
            "naive kernels": gpu.naive(),
            "updates": self.updates(),
        }))?;
        gpu.join(ranks)?;
        // The same on all, to the last bit, wherever it was computed or read.
        let [m, v] = self.adam.moments();
        [self.params.slab(), m, v, &self.running.statistics].iter().for_each(|tensor| gpu.broadcast(tensor.span()));
        device.check()?;
        self.ranks = Some(ranks.clone());
        Ok(())
    }

    /// Goes on alone. All ranks do this at once.
    pub fn part(&mut self) {
        // A captured step knows of the others.
        self.on_gpu = None;
        if let (Some(ranks), Some(gpu)) = (self.ranks.take(), self.params.device().gpu()) {
            ranks.part();
            gpu.part();
        }
    }

    /// What a person should be told, since it was last asked for.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn part_of(&self, batch: usize) -> Part {
        let (rank, ranks) = self.ranks.as_ref().map_or((0, 1), |ranks| (ranks.rank(), ranks.count()));
        Part::of(batch, rank, ranks)
    }

    fn at(&self, phase: Phase) {
        if let Some(ranks) = &self.ranks {
            ranks.at(self.running.iteration, phase);
        }
    }

    /// Makes `n` updates; on a GPU they are replays of a captured step, and the host waits only at the end.
    ///
    /// # Errors
    /// [`Error::NotFinite`] as for [`Trainer::step`]; the updates before the one that failed are kept. [`Error::Device`] and
    /// [`Error::DeviceMemory`] from a GPU, [`Error::Ranks`] if another rank was lost. Reports are those of rank 0; other ranks report on
    /// their part of the batch.
    pub fn run_steps(&mut self, n: usize) -> Result<Vec<Report>> {
        let Some(mut on_gpu) = self.take_gpu()? else { return (0..n).map(|_| self.step_on_host()).collect() };
        let done = self.run_on(&mut on_gpu, n);
        self.on_gpu = Some(on_gpu);
        self.at(Phase::Idle);
        done
    }

    /// Runs every step op by op, without capturing it: for comparison, and to find the op that fails.
    pub fn set_capture(&mut self, capture: bool) -> Result<()> {
        if let Some(mut on_gpu) = self.take_gpu()? {
            on_gpu.replay.want(capture);
            self.on_gpu = Some(on_gpu);
        }
        Ok(())
    }

    /// The captured step, if there is one.
    pub fn graph(&self) -> Option<GraphSize> {
        self.on_gpu.as_ref()?.replay.graph()
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
            replay: Replay::new(&device),
            rates: self.settings.rates,
            gpu,
        };
        device.check()?;
        Ok(Some(on_gpu))
    }

    fn run_on(&mut self, on: &mut OnGpu, n: usize) -> Result<Vec<Report>> {
        let mut reports = Vec::with_capacity(n);
        while reports.len() < n {
            let first = self.running.iteration;
            self.at(Phase::Launching);
            let steps = self.burst(on, (n - reports.len()).min(ROWS))?;
            self.at(Phase::Waiting);
            on.gpu.check()?;
            self.at(Phase::Launching);
            let (ring, factors) = on.ring.get().expect("a step was made");
            let columns = ring.shape()[1];
            let table = self.sum_over_ranks(ring.to_f64(), columns, first..first + steps as u64)?;
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

    /// Adds up, on rank 0, what the ranks have in the rows of these updates; whatever is behind their totals is the same everywhere.
    fn sum_over_ranks(&self, mut table: Vec<f64>, columns: usize, updates: Range<u64>) -> Result<Vec<f64>> {
        let Some(ranks) = &self.ranks else { return Ok(table) };
        let rows: Vec<_> = updates.map(|at| (at, (at % ROWS as u64) as usize * columns)).collect();
        let mine = rows.iter().flat_map(|&(at, row)| {
            let counted = self.part_of(self.images_at(at)).counted;
            table[row..row + columns - BEHIND].iter().map(move |x| counted * x)
        });
        let mine: Vec<f64> = mine.collect();
        let all = ranks.gather(bytemuck::cast_slice(&mine).to_vec())?;
        for (rank, theirs) in all.iter().enumerate() {
            if theirs.len() != 8 * mine.len() {
                return Err(Error::Ranks(format!("rank {rank} reports on other updates than rank 0")));
            }
            let mut theirs = theirs.chunks(8).map(|x| f64::from_ne_bytes(x.try_into().expect("eight bytes")));
            for &(_, row) in &rows {
                for x in &mut table[row..row + columns - BEHIND] {
                    let more = theirs.next().expect("as many as there are");
                    *x = if rank == 0 { more } else { *x + more };
                }
            }
        }
        Ok(table)
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
        if on.rates != self.settings.rates {
            on.rates = self.settings.rates;
            on.replay.forget();
        }
        let whole = count / batch;
        let mut replay = std::mem::replace(&mut on.replay, Replay::new(self.params.device()));
        let mut update = |at: u64, batch: usize| {
            self.running.iteration = at;
            self.record(on, batch);
            self.at(Phase::Waiting);
        };
        let done = if within < whole {
            replay.run(at, most.min(whole - within), &mut |at| update(at, batch))
        } else {
            // The rest of an epoch is a batch of its own size, seldom enough to do without a graph.
            update(at, count - within * batch);
            on.gpu.check().map(|()| 1)
        };
        self.at(Phase::Launching);
        self.notes.extend(replay.take_notes());
        on.replay = replay;
        let done = done.map_err(|error| self.fitting(on, error, self.images_at(at)))?;
        self.running.iteration = at + done as u64;
        self.adam.set_steps(self.running.iteration);
        Ok(done)
    }

    /// Where memory was too little, says how many images would fit instead of `batch`.
    fn fitting(&self, on: &OnGpu, error: Error, batch: usize) -> Error {
        let Error::DeviceMemory { op, asked, free, total, held, .. } = error else { return error };
        let (needed, available) = on.gpu.demand();
        // Slightly less than what would just fit, as memory comes in pieces.
        let fitting = (batch as f64 * 0.95 * available as f64 / needed.max(1) as f64) as usize;
        Error::DeviceMemory { op, asked, free, total, held, fitting: Some(fitting.min(batch - 1)) }
    }

    /// How many images update `at` is made with.
    fn images_at(&self, at: u64) -> usize {
        let (count, batch) = (self.images.len(), self.settings.batch);
        let within = (at % count.div_ceil(batch) as u64) as usize;
        batch.min(count - within * batch)
    }

    /// The images of the update's part, drawn, and their loss.
    fn lose_part<'t>(&self, on: &OnGpu, tape: &'t Tape<'t>, part: &Part) -> (Vec<Step<'t>>, Loss<'t>) {
        let (device, side) = (self.params.device(), self.images.side);
        let (gpu, pixels, stride) = (&on.gpu, side * side, self.settings.batch);
        let (at, count) = (self.running.iteration, part.rows.len());
        let skipped = 4 * part.rows.start;
        let order = on.order.span();
        let order = Span { address: order.address + skipped as u64, bytes: order.bytes - skipped };
        let x = Tensor::empty(device, &[count, side, side]);
        gpu.enter("gather");
        gpu.launch(
            "batch",
            "gather",
            Launch::elements(count * pixels),
            args![
                Arg::Bytes(on.images.span()),
                Arg::Words(order),
                x.out(),
                Arg::Wide(at),
                Arg::Words(gpu.clock()),
                Arg::Word(self.images.len().div_ceil(stride) as u32),
                stride,
                count,
                pixels,
            ],
        );
        self.recognise_and_lose(tape, x, part.rows.clone(), part.batch)
    }

    /// Everything that one update launches.
    fn record(&mut self, on: &OnGpu, batch: usize) {
        let device = self.params.device().clone();
        let (gpu, at) = (&on.gpu, self.running.iteration);
        let tape = Tape::new(&self.params);
        let part = self.part_of(batch);
        let (steps, loss) = self.lose_part(on, &tape, &part);
        let total = if self.ranks.is_some() { loss.loss * part.weight } else { loss.loss };
        self.grads.clear();
        tape.backward(total, &mut self.grads);
        let (loss_value, slab) = (total.value(), self.grads.slab());
        if self.ranks.is_some() {
            gpu.enter("all_reduce");
            gpu.all_reduce(&[loss_value.span()]);
            self.buckets()
                .into_iter()
                .for_each(|bucket| gpu.all_reduce(&[slab.window(bucket.start, &[bucket.len()]).span()]));
        }

        gpu.enter("report");
        let squares = Tensor::empty(&device, &[PARTS]);
        gpu.launch("report", "square_sums", Launch::rows(PARTS, 256), args![slab, squares.out(), slab.len()]);
        let mut values = vec![];
        let factors = self.model.totals(&loss, &steps).map(|terms: Terms| -> Vec<f64> {
            values.extend(terms.iter().map(|(_, value)| value.value().reshape(&[part.rows.len()])));
            terms.iter().map(|(factor, _)| *factor).collect()
        });
        let columns = values.len();
        let (ring, _) = on.ring.get_or_init(|| (Tensor::zeros(&device, &[ROWS, columns + BEHIND]), factors));
        let (clock, rows) = (Arg::Words(gpu.clock()), Arg::Word(ROWS as u32));
        let arguments =
            args![&Tensor::stack(&values), ring.out(), columns, part.rows.len(), Arg::Wide(at), clock, rows];
        gpu.launch("report", "totals", Launch::rows(columns, 256), arguments);
        let healthy = &on.healthy;
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

    /// Stretches of the gradients that are summed over GPUs one after the other, each as soon as it is complete: a large parameter, or
    /// small ones together.
    fn buckets(&self) -> Vec<Range<usize>> {
        let least = BUCKET / self.params.device().dtype().bytes();
        let mut buckets: Vec<Range<usize>> = vec![];
        for range in self.params.specs().iter().map(|spec| spec.range()) {
            match buckets.last_mut() {
                Some(last) if last.len() < least && range.len() < least => last.end = range.end,
                _ => buckets.push(range),
            }
        }
        // What is computed first is differentiated last.
        buckets.reverse();
        buckets
    }

    /// Goes back to the update that failed, which changed nothing, and makes it again to see what is not finite. Whoever finds out tells
    /// the other ranks.
    fn find_culprit(&mut self, on: &mut OnGpu, at: u64) -> Error {
        self.running.iteration = at;
        self.adam.set_steps(at);
        on.healthy.send([1.0].into_iter());
        let found = self.culprit_here(on, at);
        let Some(ranks) = self.ranks.clone() else {
            return self.not_finite(found.unwrap_or_else(|| "the loss".into()));
        };
        let told = ranks.gather(found.unwrap_or_default().into_bytes()).and_then(|all| {
            let first = all.into_iter().enumerate().find(|(_, found)| !found.is_empty());
            let named = |(rank, found): (usize, Vec<u8>)| format!("{} on rank {rank}", String::from_utf8_lossy(&found));
            ranks.broadcast(|| Ok(first.map_or_else(|| "the loss".into(), named).into_bytes()))
        });
        match told {
            Ok(what) => self.not_finite(String::from_utf8_lossy(&what).into_owned()),
            Err(error) => error,
        }
    }

    /// What is not finite in the part of update `at` that is computed here.
    fn culprit_here(&mut self, on: &OnGpu, at: u64) -> Option<String> {
        let tape = Tape::new(&self.params);
        let part = self.part_of(self.images_at(at));
        let (_, loss) = self.lose_part(on, &tape, &part);
        differentiate(&self.params, &tape, loss.loss, &mut self.grads).err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_up_the_batch_and_their_weights_one() {
        for (batch, ranks) in [(64, 1), (64, 2), (64, 3), (7, 4), (4, 4), (3, 4), (1, 8)] {
            let parts: Vec<Part> = (0..ranks).map(|rank| Part::of(batch, rank, ranks)).collect();
            let (weights, counted) =
                parts.iter().fold((0.0, 0.0), |(w, c), p| (w + p.weight, c + p.counted * p.rows.len() as f64));
            assert!((weights - 1.0).abs() < 1e-12 && (counted - batch as f64).abs() < 1e-12, "{batch} on {ranks}");
            assert!(parts.iter().all(|part| !part.rows.is_empty() && part.rows.end <= batch));
            if batch >= ranks {
                assert!(parts.windows(2).all(|two| two[0].rows.end == two[1].rows.start));
            }
        }
    }
}
