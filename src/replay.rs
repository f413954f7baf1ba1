//! Work that is done for one number after the other. On a GPU it runs kernel by kernel the first time, is captured the second, and
//! replayed from then on: an update of training, a pass of a bound, a move of what is free under a frozen model.

use crate::{
    Device, Error, Result,
    gpu::{Gpu, Graph, GraphSize},
    profile,
};
use std::sync::Arc;

/// How to do the same work again.
///
/// Work whose sizes stay, which launches the same kernels for every number, whose inputs and results lie in memory of its caller, and
/// which neither sends nor reads values. What depends on its number is either a random number or a kernel that is told the clock
/// ([`Gpu::clock`]).
pub(crate) struct Replay {
    device: Device,
    wanted: bool,
    state: State,
    notes: Vec<String>,
}

enum State {
    /// It has not run yet, so neither its kernels nor its memory are known.
    Fresh,
    /// It has run.
    Known,
    /// It was captured, as this number.
    Captured(Graph, u64),
}

impl Replay {
    /// On the CPU, and where every op is timed, work is only ever done.
    pub fn new(device: &Device) -> Self {
        Replay { device: device.clone(), wanted: !profile::is_on(), state: State::Fresh, notes: vec![] }
    }

    /// Whether to capture at all, from here on.
    pub fn want(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.forget();
    }

    /// The work has become another.
    pub fn forget(&mut self) {
        self.state = State::Fresh;
    }

    /// What was captured.
    pub fn graph(&self) -> Option<GraphSize> {
        match &self.state {
            State::Captured(graph, _) => Some(graph.size()),
            _ => None,
        }
    }

    /// What a person should be told, since it was last asked for.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Does the work for `from` and, where that takes replays alone, for the numbers behind it; `most` in all, at least one. Returns for
    /// how many. Replays are not waited for.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&mut self, from: u64, most: usize, work: &mut dyn FnMut(u64)) -> Result<usize> {
        let Some(gpu) = self.device.gpu().cloned() else {
            work(from);
            return Ok(1);
        };
        if self.wanted && matches!(self.state, State::Known) {
            self.capture(&gpu, from, work)?;
        }
        if let State::Captured(graph, at) = &mut self.state {
            graph.replay(from.wrapping_sub(*at), most)?;
            return Ok(most);
        }
        self.scoped(from, work);
        gpu.check()?;
        self.state = State::Known;
        Ok(1)
    }

    fn scoped(&self, number: u64, work: &mut dyn FnMut(u64)) {
        let _step = self.device.step();
        work(number);
    }

    /// Captures the work as a graph, else as a chain; else it runs kernel by kernel from here on.
    fn capture(&mut self, gpu: &Arc<Gpu>, at: u64, work: &mut dyn FnMut(u64)) -> Result<()> {
        let mut why = None;
        loop {
            match gpu.capture(|| self.scoped(at, work)) {
                Ok(graph) => {
                    self.state = State::Captured(graph, at);
                    if let Some(error) = why {
                        self.notes.push(format!("{error}; its kernels run one after the other now, which is slower."));
                    }
                    return Ok(());
                }
                Err(error) => {
                    gpu.check()?;
                    let memory = matches!(error, Error::DeviceMemory { .. });
                    let error = why.get_or_insert(error);
                    if memory || !gpu.in_a_row() {
                        self.notes.push(format!("{error}; it is launched kernel by kernel now, which is slower."));
                        self.wanted = false;
                        return Ok(());
                    }
                }
            }
        }
    }
}
