//! Times by the GPU's own clock.

use super::Gpu;
use cudarc::driver::{CudaEvent, sys::CUevent_flags};

/// A place in what is asked of a GPU: it notes the time when it gets there. None after an error, or in a step that is captured.
pub(crate) struct Event(Option<CudaEvent>);

impl Gpu {
    /// The end of everything that was asked for so far.
    pub(crate) fn mark(&self) -> Event {
        let state = self.state();
        if state.error.is_some() || state.recording.is_some() {
            return Event(None);
        }
        drop(state);
        let marked = self.bound().and_then(|()| self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)));
        Event(marked.map_err(|e| self.fail_driver("while time was taken", e)).ok())
    }

    /// Milliseconds between two places, once the GPU has been at both; NaN where there is none.
    pub(crate) fn milliseconds(&self, from: &Event, to: &Event) -> f64 {
        let (Some(from), Some(to)) = (&from.0, &to.0) else { return f64::NAN };
        from.elapsed_ms(to).map_err(|e| self.fail_driver("while kernels ran", e)).map_or(f64::NAN, f64::from)
    }
}
