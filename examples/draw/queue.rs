//! What waits for the model: a bounded line, in which a newer request of a client takes the place of its older one.

use super::api::{Refusal, Task};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// The body of an answer, or why there is none.
pub type Outcome = Result<String, Refusal>;

/// A task that somebody waits for.
pub struct Job {
    pub task: Task,
    /// Nobody waits any more.
    pub left: Arc<AtomicBool>,
    pub answer: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// The client of the job that is being done, and what stops it.
    running: Option<(Option<String>, Arc<AtomicBool>)>,
    over: bool,
}

/// The line.
pub struct Queue {
    line: Mutex<Line>,
    news: Condvar,
    most: usize,
}

/// Stops the work for a request once nobody waits for its answer.
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What an older request is told.
pub fn superseded() -> Refusal {
    Refusal::new(409, "a newer request of the same client took the place of this one")
}

/// What is told while the program ends.
pub fn ending() -> Refusal {
    Refusal::new(503, "the program is being ended: start it again")
}

impl Queue {
    /// One in which at most `most` wait.
    pub fn new(most: usize) -> Self {
        Queue { line: Mutex::default(), news: Condvar::new(), most }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a task in; an older one of the same client is given up.
    pub fn push(&self, task: Task) -> Result<(oneshot::Receiver<Outcome>, Waiting), Refusal> {
        let mut line = self.line();
        if line.over {
            return Err(ending());
        }
        if let Some(client) = &task.client {
            if let Some((Some(running), left)) = &line.running
                && running == client
            {
                left.store(true, Relaxed);
            }
            let older = line.jobs.iter().position(|job| job.task.client.as_ref() == Some(client));
            if let Some(job) = older.and_then(|at| line.jobs.remove(at)) {
                let _ = job.answer.send(Err(superseded()));
            }
        }
        line.jobs.retain(|job| !job.left.load(Relaxed));
        if line.jobs.len() >= self.most {
            return Err(Refusal::new(503, format!("{} requests wait already: try again in a moment", self.most)));
        }
        let (answer, receiver) = oneshot::channel();
        let left = Arc::new(AtomicBool::new(false));
        line.jobs.push_back(Job { task, left: left.clone(), answer });
        self.news.notify_one();
        Ok((receiver, Waiting(left)))
    }

    /// The next job that somebody waits for, if one comes in `time`.
    pub fn next(&self, time: Duration) -> Option<Job> {
        let line = self.line();
        let none = |line: &mut Line| {
            line.running = None;
            line.jobs.retain(|job| !job.left.load(Relaxed));
            line.jobs.is_empty()
        };
        let (mut line, _) = self.news.wait_timeout_while(line, time, none).unwrap_or_else(PoisonError::into_inner);
        let job = line.jobs.pop_front()?;
        line.running = Some((job.task.client.clone(), job.left.clone()));
        Some(job)
    }

    /// Takes nothing in any more, and tells all who wait.
    pub fn end(&self) {
        let mut line = self.line();
        line.over = true;
        for job in line.jobs.drain(..) {
            let _ = job.answer.send(Err(ending()));
        }
    }
}
