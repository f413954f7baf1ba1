//! Capturing a step as a CUDA graph, and replaying it.

use super::{
    Arg, Gpu, GraphSize, Launch, Span,
    arena::{ALIGN, Arena, Memory, NothingFreed},
    args,
};
use crate::{Error, Result};
use cudarc::driver::{DriverError, sys};
use std::{
    ptr::{null, null_mut},
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
};

/// A captured step. It owns the memory that it works in.
pub(crate) struct Graph {
    graph: Executable,
    gpu: Arc<Gpu>,
    /// Counts replays; random numbers and counters of the captured step add it to the step of the capture.
    clock: Memory,
    _arena: Arena,
    size: GraphSize,
}

// SAFETY: the driver asks that a graph be used by one thread at a time; `&mut` in `replay` sees to that.
unsafe impl Send for Graph {}

/// The nodes of a step that is being captured.
#[derive(Default)]
pub(super) struct Recording {
    nodes: Vec<Node>,
    bytes: usize,
}

struct Node {
    /// Its name, or names: a library may make several nodes of what is one here.
    handles: Vec<sys::CUgraphNode>,
    reads: Vec<Span>,
    writes: Vec<Span>,
    /// The nodes that it waits for.
    direct: Vec<usize>,
    /// The nodes that it comes after, directly or not: a bit for each.
    after: Vec<u64>,
    /// Of the nodes that it comes after, the most that wait for each other in a row.
    depth: usize,
}

// SAFETY: handles of nodes are names, which any thread may know.
unsafe impl Send for Recording {}

impl Recording {
    /// The nodes that a node with these reads and writes has to wait for, the latest first, without those that they wait for
    /// themselves; and all of them as bits.
    fn needed(&self, reads: &[Span], writes: &[Span]) -> (Vec<usize>, Vec<u64>) {
        let meet = |a: &[Span], b: &[Span]| a.iter().any(|a| b.iter().any(|b| a.meets(*b)));
        let (mut direct, mut all) = (vec![], vec![0u64; self.nodes.len() / 64 + 1]);
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let known = all[i / 64] >> (i % 64) & 1 == 1;
            if !known && (meet(&node.writes, reads) || meet(&node.writes, writes) || meet(&node.reads, writes)) {
                direct.push(i);
                all[i / 64] |= 1 << (i % 64);
                all.iter_mut().zip(&node.after).for_each(|(all, after)| *all |= after);
            }
        }
        (direct, all)
    }

    /// The nodes that no other waits for.
    fn last(&self) -> Vec<usize> {
        let mut awaited = vec![0u64; self.nodes.len() / 64 + 1];
        for node in &self.nodes {
            awaited.iter_mut().zip(&node.after).for_each(|(all, after)| *all |= after);
        }
        (0..self.nodes.len()).filter(|i| awaited[i / 64] >> (i % 64) & 1 == 0).collect()
    }

    /// How urgent each node is, from 0 to `most`: the more nodes have to come after it one after the other, the more. So kernels that
    /// others wait for are not held up by those that are in no hurry, as the gradients of weights.
    fn urgencies(&self, most: usize) -> Vec<usize> {
        let mut following = vec![1usize; self.nodes.len()];
        for i in (0..self.nodes.len()).rev() {
            for &before in &self.nodes[i].direct {
                following[before] = following[before].max(following[i] + 1);
            }
        }
        let longest = following.iter().copied().max().unwrap_or(1);
        // Half as many for each level less.
        let less = |n: usize| (0..most).find(|level| n << (level + 1) > longest).unwrap_or(most);
        following.into_iter().map(|n| most - less(n)).collect()
    }

    fn size(&self) -> GraphSize {
        let longest_chain = self.nodes.iter().map(|n| n.depth + 1).max().unwrap_or(0);
        GraphSize { nodes: self.nodes.len(), longest_chain, bytes: self.bytes }
    }
}

impl Gpu {
    /// Gives the driver something to do that reads `reads`, and reads or writes `writes`. In a captured step it will wait for what it
    /// must wait for, and for nothing else: whatever writes what it reads, and whatever reads or writes what it writes.
    pub(super) fn submit(
        &self,
        reads: &[Span],
        writes: &[Span],
        work: impl FnOnce() -> std::result::Result<(), DriverError>,
    ) -> std::result::Result<(), DriverError> {
        self.bound()?;
        let mut state = self.state();
        let Some(recording) = &mut state.recording else {
            drop(state);
            return work();
        };
        recording.bytes += reads.iter().chain(writes).map(|span| span.bytes).sum::<usize>();
        if !self.parallel() {
            let depth = recording.nodes.len();
            recording.nodes.push(Node {
                handles: vec![],
                reads: vec![],
                writes: vec![],
                direct: vec![],
                after: vec![],
                depth,
            });
            return work();
        }
        let (direct, after) = recording.needed(reads, writes);
        let depth = direct.iter().map(|&i| recording.nodes[i].depth + 1).max().unwrap_or(0);
        self.wait_for(direct.iter().flat_map(|&i| recording.nodes[i].handles.clone()).collect())?;
        work()?;
        let (handles, reads, writes) = (self.last_captured()?, reads.to_vec(), writes.to_vec());
        recording.nodes.push(Node { handles, reads, writes, direct, after, depth });
        Ok(())
    }

    /// What is captured next comes after these nodes, and no others.
    fn wait_for(&self, mut nodes: Vec<sys::CUgraphNode>) -> std::result::Result<(), DriverError> {
        let set = sys::CUstreamUpdateCaptureDependencies_flags_enum::CU_STREAM_SET_CAPTURE_DEPENDENCIES as u32;
        let (stream, no_data) = (self.stream.cu_stream(), null());
        // An empty vector points nowhere, which is not the same as nothing.
        let list = if nodes.is_empty() { null_mut() } else { nodes.as_mut_ptr() };
        // SAFETY: the nodes belong to the graph that this stream is capturing.
        unsafe { sys::cuStreamUpdateCaptureDependencies_v2(stream, list, no_data, nodes.len(), set) }.result()
    }

    /// The nodes that what is captured next would come after: those of what was captured last.
    fn last_captured(&self) -> std::result::Result<Vec<sys::CUgraphNode>, DriverError> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // Edges may have data, as those of a library's kernels; without a place for them the driver does not answer.
        let (mut nodes, mut edges, mut count) = (null(), null(), 0);
        // SAFETY: the places are valid; the list of nodes belongs to the driver and is read before the next call.
        unsafe {
            let (stream, none) = (self.stream.cu_stream(), null_mut());
            sys::cuStreamGetCaptureInfo_v3(stream, &mut status, none, null_mut(), &mut nodes, &mut edges, &mut count)
                .result()?;
            match count {
                0 => Err(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)),
                _ => Ok(std::slice::from_raw_parts(nodes, count).to_vec()),
            }
        }
    }

    /// Makes the end of the capture come after everything in it.
    fn wait_for_all(&self) -> std::result::Result<(), DriverError> {
        let state = self.state();
        let Some(recording) = state.recording.as_ref().filter(|_| self.parallel()) else { return Ok(()) };
        let handles = recording.last().iter().flat_map(|&i| recording.nodes[i].handles.clone()).collect();
        drop(state);
        self.wait_for(handles)
    }

    fn parallel(&self) -> bool {
        self.parallel.load(Relaxed)
    }

    /// Kernels that are captured from now on wait for the one before; whether they did not already.
    pub(crate) fn in_a_row(&self) -> bool {
        self.parallel.swap(false, Relaxed)
    }

    fn end_capture(self: &Arc<Self>) -> std::result::Result<Executable, DriverError> {
        let mut graph = Executable { graph: null_mut(), exec: null_mut(), gpu: self.clone() };
        // SAFETY: the place is valid, and this stream is capturing.
        unsafe { sys::cuStreamEndCapture(self.stream.cu_stream(), &mut graph.graph) }.result()?;
        Ok(graph)
    }

    fn set_clock(&self, clock: &Memory, steps: u64) {
        let to = args![Arg::Wide(steps), Arg::WordsOut(clock.span())];
        self.launch("clock", "set_clock", Launch::rows(1, 32), to);
    }

    /// Captures what `step` launches, instead of running it. The same step must have run just before, so that its kernels are
    /// loaded and its memory is known.
    ///
    /// # Errors
    /// What made the step impossible to capture: memory that the step before did not need, a value sent or read back.
    pub(crate) fn capture(self: &Arc<Self>, step: impl FnOnce()) -> Result<Graph> {
        self.check()?;
        let failed = |e: DriverError| Error::Device(format!("a step cannot be captured as a CUDA graph: {e}"));
        let arena = self.state().arena.alike(&self.context);
        let arena = arena.map_err(|_| self.out_of_memory("capture", self.state().arena.asked()))?;
        let clock = Memory::new(&self.context, ALIGN).map_err(failed)?;
        let tick = || self.launch("clock", "tick", Launch::rows(1, 32), args![Arg::WordsOut(clock.span())]);
        // All kernels have run before the capture, so that nothing has to be loaded during it.
        self.set_clock(&clock, 0);
        tick();
        self.check()?;
        let eager = {
            let mut state = self.state();
            (state.recording, state.clock) = (Some(Recording::default()), clock.span());
            std::mem::replace(&mut state.arena, arena)
        };
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let nothing_freed = NothingFreed::new();
        let began = self.stream.begin_capture(mode).map_err(failed);
        let mut joined = Ok(());
        if began.is_ok() {
            step();
            tick();
            joined = self.wait_for_all().map_err(failed);
        }
        let ended = began.and_then(|()| self.end_capture().map_err(failed));
        let (arena, recording) = {
            let mut state = self.state();
            state.clock = self.still.span();
            (std::mem::replace(&mut state.arena, eager), state.recording.take().expect("a capture has begun"))
        };
        drop(nothing_freed);
        // The op's own sentence says more than the driver's complaint about its consequences.
        if let Some(error) = self.state().error.take() {
            return Err(error);
        }
        joined?;
        let graph = ended?.instantiate(&recording).map_err(failed)?;
        Ok(Graph { graph, gpu: self.clone(), clock, _arena: arena, size: recording.size() })
    }
}

/// A graph, and what the driver has made of it.
struct Executable {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    gpu: Arc<Gpu>,
}

impl Executable {
    /// Gives nodes their priorities, and makes the graph ready to be launched.
    fn instantiate(mut self, recording: &Recording) -> std::result::Result<Self, DriverError> {
        if self.gpu.parallel() && !*ALIKE {
            self.set_priorities(recording)?;
        }
        let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY.0 as u64;
        // SAFETY: the graph was captured, and the place is valid.
        unsafe {
            sys::cuGraphInstantiateWithFlags(&mut self.exec, self.graph, flags).result()?;
            sys::cuGraphUpload(self.exec, self.gpu.stream.cu_stream()).result()?;
        }
        Ok(self)
    }

    fn set_priorities(&self, recording: &Recording) -> std::result::Result<(), DriverError> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the places are valid.
        unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) }.result()?;
        // Numbers count downwards: the greatest priority has the least.
        let levels = (least - greatest).max(0) as usize;
        for (node, urgency) in recording.nodes.iter().zip(recording.urgencies(levels)) {
            for &handle in &node.handles {
                let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
                // SAFETY: the node belongs to the graph, the place is valid, and the value is that of the attribute.
                unsafe {
                    sys::cuGraphNodeGetType(handle, &mut kind).result()?;
                    if kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL {
                        let mut value: sys::CUkernelNodeAttrValue = std::mem::zeroed();
                        value.priority = least - urgency as i32;
                        let priority = sys::CUkernelNodeAttrID::CU_LAUNCH_ATTRIBUTE_PRIORITY;
                        sys::cuGraphKernelNodeSetAttribute(handle, priority, &value).result()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn launch(&self) -> std::result::Result<(), DriverError> {
        self.gpu.bound()?;
        // SAFETY: it was instantiated.
        unsafe { sys::cuGraphLaunch(self.exec, self.gpu.stream.cu_stream()) }.result()
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        if self.gpu.bound().is_err() {
            return;
        }
        // SAFETY: both are destroyed once; the driver waits for launches.
        unsafe {
            if !self.exec.is_null() {
                let _ = sys::cuGraphExecDestroy(self.exec).result();
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph).result();
            }
        }
    }
}

/// `DOOD_CUDA_GRAPH=alike` gives all kernels of a captured step the same priority.
static ALIKE: LazyLock<bool> = LazyLock::new(|| std::env::var("DOOD_CUDA_GRAPH").is_ok_and(|v| v == "alike"));

impl Graph {
    /// What was captured.
    pub fn size(&self) -> GraphSize {
        self.size
    }

    /// Replays the step `times` times, as the steps `from`, `from + 1`, … after the captured one.
    ///
    /// # Errors
    /// What the driver says. Errors of kernels come out of the next [`Gpu::check`].
    pub fn replay(&mut self, from: u64, times: usize) -> Result<()> {
        self.gpu.set_clock(&self.clock, from);
        for _ in 0..times {
            self.graph.launch().map_err(|e| Error::Device(format!("a captured step cannot be replayed: {e}")))?;
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::{DType, Device, MathMode, Tensor, rng::Rng, rng::Stream, stand_in};

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
        refused(&|| drop(Tensor::from_f64(&device, &[10], &[1.0; 10])), "values were sent to it");
        refused(&|| drop(Tensor::full(&device, &[10], 1.0).to_f32()), "values were read back");
    }

    #[test]
    fn a_node_waits_for_those_it_needs_and_not_for_those_they_need() {
        let of = |from: u64| Span { address: 1000 * from, bytes: 1000 };
        let [a, b, c, d] = [1, 2, 3, 4].map(of);
        let mut recording = Recording::default();
        let mut add = |reads: &[Span], writes: &[Span]| {
            let (direct, after) = recording.needed(reads, writes);
            let (reads, writes) = (reads.to_vec(), writes.to_vec());
            recording.nodes.push(Node { handles: vec![], reads, writes, direct: direct.clone(), after, depth: 0 });
            direct
        };
        assert!(add(&[], &[a]).is_empty());
        assert!(add(&[], &[b]).is_empty(), "another output waits for nothing");
        assert_eq!(add(&[a, b], &[c]), [1, 0], "a sum waits for both summands");
        assert_eq!(add(&[a, c], &[d]), [2], "the first is waited for already");
        assert_eq!(add(&[a], &[Span { address: 5000, bytes: 1 }]), [0], "two may read at once");
        assert_eq!(add(&[], &[a]), [4, 3], "what is read must not be overwritten");
        let inside = Span { address: 3500, bytes: 4 };
        assert_eq!(add(&[], &[inside]), [3], "a part of what was written, which the third wrote and the fourth read");
        assert_eq!(add(&[Span { address: 3504, bytes: 4 }], &[Span { address: 6000, bytes: 1 }]), [2], "its neighbour");
        assert!(add(&[Span::NONE], &[Span::NONE]).is_empty(), "null pointers are no memory");
    }

    #[test]
    fn nodes_that_many_wait_for_are_urgent() {
        let mut recording = Recording::default();
        let mut add = |direct: &[usize]| {
            let (handles, reads, writes, after) = (vec![], vec![], vec![], vec![]);
            recording.nodes.push(Node { handles, reads, writes, direct: direct.to_vec(), after, depth: 0 });
        };
        add(&[]);
        (0..15).for_each(|i| add(&[i]));
        // Two that only the end waits for.
        add(&[]);
        add(&[3]);
        let urgent = recording.urgencies(4);
        assert_eq!(urgent[..16], [4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 1, 0]);
        assert_eq!(urgent[16..], [0, 0]);
        assert!(recording.urgencies(0).iter().all(|urgency| *urgency == 0));
    }

    #[test]
    fn memory_that_is_let_go_of_in_a_captured_step_is_freed_behind_it() {
        let Some((_alone, device)) = device() else { return };
        let gpu = device.gpu().unwrap();
        let kept = Tensor::zeros(&device, &[3]);
        let work = || {
            let _step = device.step();
            kept.copy_on_gpu(&Tensor::full(&device, &[3], 4.0));
        };
        work();
        let mut outside = Some(Tensor::zeros(&device, &[1000]));
        let mut graph = gpu
            .capture(|| {
                outside = None;
                work();
            })
            .unwrap();
        graph.replay(0, 1).unwrap();
        assert_eq!(kept.to_f32(), [4.0; 3]);
    }

    #[test]
    fn what_needs_nothing_of_each_other_does_not_wait_for_each_other() {
        let Some((_alone, device)) = device() else { return };
        let gpu = device.gpu().unwrap();
        let kept = [(); 5].map(|()| Tensor::zeros(&device, &[3]));
        let fill = || {
            let _step = device.step();
            for (i, kept) in kept.iter().enumerate() {
                kept.copy_on_gpu(&Tensor::full(&device, &[3], i as f64));
            }
        };
        fill();
        let mut graph = gpu.capture(fill).unwrap();
        // A fill and a copy for each, and the clock.
        let size = graph.size();
        assert_eq!((size.nodes, size.longest_chain), (11, 2));
        // Three numbers are filled, read and written; the clock has room for more than its two words.
        assert_eq!(size.bytes, 5 * 3 * 12 + ALIGN);
        kept.iter().for_each(|kept| gpu.clear(kept.span()));
        graph.replay(0, 1).unwrap();
        assert_eq!(kept.map(|kept| kept.to_f32()[2]), [0.0, 1.0, 2.0, 3.0, 4.0]);
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
