//! Capturing a step as a CUDA graph, and replaying it.

use super::{
    Arg, Gpu, Launch,
    arena::{ALIGN, Arena, Memory},
    args,
};
use crate::{Error, Result};
use cudarc::driver::{CudaGraph, DriverError, sys};
use std::sync::Arc;

/// A captured step. It owns the memory that it works in.
pub(crate) struct Graph {
    graph: CudaGraph,
    gpu: Arc<Gpu>,
    /// Counts replays; random numbers and counters of the captured step add it to the step of the capture.
    clock: Memory,
    _arena: Arena,
}

// SAFETY: the driver asks that a graph be used by one thread at a time; `&mut` in `replay` sees to that.
unsafe impl Send for Graph {}

impl Gpu {
    /// Captures what `step` launches, instead of running it. The same step must have run just before, so that its kernels are
    /// loaded and its memory is known.
    ///
    /// # Errors
    /// What made the step impossible to capture: memory that the step before did not need, a value sent or read back.
    pub fn capture(self: &Arc<Self>, step: impl FnOnce()) -> Result<Graph> {
        self.check()?;
        let failed =
            |e: DriverError| Error::Device(format!("the training step cannot be captured as a CUDA graph: {e}"));
        let arena = self.state().arena.alike(&self.context);
        let arena = arena.map_err(|_| self.out_of_memory("capture", self.state().arena.asked()))?;
        let clock = Memory::new(&self.context, ALIGN).map_err(failed)?;
        let eager = {
            let mut state = self.state();
            (state.capturing, state.clock) = (true, clock.address());
            std::mem::replace(&mut state.arena, arena)
        };
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let began = self.stream.begin_capture(mode).map_err(failed);
        if began.is_ok() {
            step();
            self.launch("step", "tick", Launch::rows(1, 32), args![Arg::WordsOut(clock.address())]);
        }
        let ended = began.and_then(|()| self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed));
        let arena = {
            let mut state = self.state();
            (state.capturing, state.clock) = (false, self.still.address());
            std::mem::replace(&mut state.arena, eager)
        };
        // The op's own sentence says more than the driver's complaint about its consequences.
        if let Some(error) = self.state().error.take() {
            return Err(error);
        }
        let graph = ended?.ok_or_else(|| Error::Device("the captured step was empty".into()))?;
        graph.upload().map_err(failed)?;
        Ok(Graph { graph, gpu: self.clone(), clock, _arena: arena })
    }
}

impl Graph {
    /// Replays the step `times` times, as the steps `from`, `from + 1`, … after the captured one.
    ///
    /// # Errors
    /// What the driver says. Errors of kernels come out of the next [`Gpu::check`].
    pub fn replay(&mut self, from: u64, times: usize) -> Result<()> {
        let set = args![Arg::Wide(from), Arg::WordsOut(self.clock.address())];
        self.gpu.launch("step", "set_clock", Launch::rows(1, 32), set);
        for _ in 0..times {
            self.graph
                .launch()
                .map_err(|e| Error::Device(format!("the captured training step cannot be replayed: {e}")))?;
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
#[path = "../../tests/common/stand_in.rs"]
mod stand_in;

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::{DType, Device, MathMode, Tensor, rng::Rng, rng::Stream};

    fn device() -> Option<(stand_in::Alone, Device)> {
        if let Err(why) = stand_in::install() {
            println!("{why}");
            return None;
        }
        Some((stand_in::alone(), Device::cuda(0, DType::F32, MathMode::F32).unwrap()))
    }

    /// Runs `first` as a step, then captures `second` as one, and returns what it is refused for.
    fn refusal(device: &Device, first: impl Fn(), second: impl Fn()) -> String {
        let gpu = device.gpu().unwrap();
        let scoped = |work: &dyn Fn()| {
            let _step = device.step();
            gpu.enter("scribble");
            work();
        };
        scoped(&first);
        match gpu.capture(|| scoped(&second)) {
            Ok(_) => panic!("nothing was refused"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_a_captured_step_may_not_do_is_refused_with_the_name_of_the_op() {
        let Some((_alone, device)) = device() else { return };
        let small = || drop(Tensor::full(&device, &[10], 1.0));
        let refused = |second: &dyn Fn(), what: &str| {
            let why = refusal(&device, small, second);
            assert!(why.contains("scribble") && why.contains(what), "{why}");
            // The device goes on.
            assert_eq!(Tensor::full(&device, &[3], 2.0).to_f32(), [2.0; 3]);
            device.check().unwrap();
        };
        refused(&|| drop(Tensor::full(&device, &[100_000_000], 1.0)), "asked for 400000000 bytes");
        refused(&|| drop(Tensor::from_f64(&device, &[10], &[1.0; 10])), "sent values");
        refused(&|| drop(Tensor::full(&device, &[10], 1.0).to_f32()), "read back");
    }

    #[test]
    fn replays_draw_what_the_steps_in_their_place_would_have_drawn() {
        let Some((_alone, device)) = device() else { return };
        let gpu = device.gpu().unwrap();
        let kept = Tensor::zeros(&device, &[4]);
        let draw = |step: u64| {
            let _step = device.step();
            kept.copy_on_gpu(&Rng::new(9, step).normal_tensor(&device, Stream(1), &[4]));
        };
        draw(0);
        let mut graph = gpu.capture(|| draw(1)).unwrap();
        graph.replay(0, 3).unwrap();
        let wanted = |step| Rng::new(9, step).normal_tensor(&device, Stream(1), &[4]).to_f32();
        assert_eq!(kept.to_f32(), wanted(3));
        graph.replay(1, 1).unwrap();
        assert_eq!(kept.to_f32(), wanted(2));
    }
}
