//! Several processes that make one run together, each with a GPU of its own: who they are, how they find each other, what they tell each
//! other, and how all of them end when one is lost.
//!
//! Rank 0 leads. Every other rank keeps a TCP connection to it, on which both say once a second that they are there. A rank that is
//! silent for too long, whose connection breaks, or that fails, ends the run on all of them, with a sentence that names it. Numbers go
//! another way, from GPU to GPU (`gpu/nccl.rs`).

mod link;
mod place;

pub use place::{Launcher, Place};

use crate::{Error, Result};
use link::{Frame, Kind, Link};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// How often ranks say that they are there.
const BEAT: Duration = Duration::from_secs(1);
/// How often whoever waits looks whether the run has failed.
const LOOK: Duration = Duration::from_millis(20);
/// How long a failed rank may take to end by itself, before it is [stuck](Ranks::meet).
const GRACE: Duration = Duration::from_secs(8);

/// Seconds of silence after which a rank is lost: 12, or what `DOOD_RANKS_PATIENCE` says.
fn patience() -> Duration {
    let seconds = std::env::var("DOOD_RANKS_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.filter(|s: &f64| (0.1..1e6).contains(s)).unwrap_or(12.0))
}

/// What a rank is doing, for the others to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Nothing that others wait for.
    Idle,
    /// Giving its GPU updates to make.
    Launching,
    /// Waiting for its GPU.
    Waiting,
}

/// A rank of a run, connected to the others.
pub struct Ranks {
    shared: Arc<Shared>,
    /// What each link has received: of rank 0 in the order of ranks from 1, of others one.
    inbox: Vec<Mutex<Receiver<Vec<u8>>>>,
    /// Of rank 0, the processes that it has started.
    children: Mutex<Vec<Child>>,
}

struct Shared {
    place: Place,
    host: String,
    links: Vec<Link>,
    /// The first failure, and whether it was told here by another rank.
    failure: Mutex<Option<Failure>>,
    /// What lets go of a GPU that waits for others.
    let_go: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    stop: AtomicBool,
    over: AtomicBool,
    step: AtomicU64,
    phase: AtomicU8,
    /// When the phase began.
    since: Mutex<Instant>,
    /// The longest that the updates of one look have taken so far.
    longest: Mutex<Duration>,
}

#[derive(Clone)]
struct Failure {
    sentence: String,
    at: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(Error::Ranks(sentence.into()))
}

/// The name of this machine.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

impl Ranks {
    /// Starts this program, with its own arguments, `count` − 1 times more on this machine, and is rank 0 of them. For `about` and
    /// `stuck` see [`Ranks::meet`].
    ///
    /// # Errors
    /// As [`Ranks::meet`], and for a program that cannot be started or ends before it has come.
    pub fn start(count: usize, about: &Value, stuck: impl Fn(&str) + Send + 'static) -> Result<Ranks> {
        let failed = |e: std::io::Error| Error::Ranks(format!("the other ranks cannot be started: {e}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let first = Place::own(0, count, port);
        let program = std::env::current_exe().map_err(failed)?;
        let mut children = Children(vec![], GRACE / 4);
        for rank in 1..count {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1)).env(place::OWN, first.of(rank).text());
            children.0.push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(failed)?);
        }
        let (shared, inbox) = lead(first, listener, about, &mut children.0, time_to_meet())?;
        Ok(Ranks::new(shared, inbox, std::mem::take(&mut children.0), stuck))
    }

    /// Finds the other ranks. `about` is what has to be the same for all of them; ranks that differ are refused with the names of the
    /// fields. `stuck` is called with the reason when the run has failed and this process does not end, because its GPU does not let go:
    /// it should end the program.
    ///
    /// # Errors
    /// [`Error::Ranks`] if others do not come in time, cannot be reached, or do not belong together.
    pub fn meet(place: Place, about: &Value, stuck: impl Fn(&str) + Send + 'static) -> Result<Ranks> {
        let (shared, inbox) = if place.rank == 0 {
            let listener = listen(&place)?;
            lead(place, listener, about, &mut [], time_to_meet())?
        } else {
            join(place, about)?
        };
        Ok(Ranks::new(shared, inbox, vec![], stuck))
    }

    fn new(
        shared: Arc<Shared>,
        inbox: Vec<Receiver<Vec<u8>>>,
        children: Vec<Child>,
        stuck: impl Fn(&str) + Send + 'static,
    ) -> Ranks {
        let watched = shared.clone();
        thread::spawn(move || watched.watch(stuck));
        Ranks { shared, inbox: inbox.into_iter().map(Mutex::new).collect(), children: Mutex::new(children) }
    }

    /// The number of this rank.
    pub fn rank(&self) -> usize {
        self.shared.place.rank
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared.place.count
    }

    /// The number of this rank among those of its machine: the number of its GPU.
    pub fn local(&self) -> usize {
        self.shared.place.local
    }

    /// Whether this rank leads.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// [`Error::Ranks`] with the reason for which the run ends.
    pub fn check(&self) -> Result<()> {
        match &*lock(&self.shared.failure) {
            Some(failure) => refuse(&failure.sentence),
            None => Ok(()),
        }
    }

    /// Ends the run on all ranks, for this reason of this one.
    pub fn fail(&self, reason: &str) {
        let Shared { place, host, step, .. } = &*self.shared;
        let step = step.load(Relaxed);
        self.shared.fail(format!("rank {} (host {host}) ended at step {step}: {reason}", place.rank));
    }

    /// What one rank tells all: what rank 0 gives comes out everywhere.
    ///
    /// # Errors
    /// [`Error::Ranks`] if the run has failed.
    pub(crate) fn broadcast(&self, mine: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        self.check()?;
        if !self.leads() {
            return self.receive(0);
        }
        let bytes = mine()?;
        self.shared.links.iter().for_each(|link| link.send(Kind::Message, &bytes));
        Ok(bytes)
    }

    /// What all tell rank 0: their bytes in the order of ranks come out there, nothing elsewhere.
    ///
    /// # Errors
    /// [`Error::Ranks`] if the run has failed.
    pub(crate) fn gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.check()?;
        if !self.leads() {
            self.shared.links[0].send(Kind::Message, &mine);
            return Ok(vec![]);
        }
        let mut all = vec![mine];
        for link in 0..self.inbox.len() {
            all.push(self.receive(link)?);
        }
        Ok(all)
    }

    /// Holds that all ranks have the same to say about `what`.
    ///
    /// # Errors
    /// [`Error::Ranks`] on all of them, with the rank that differs and in what.
    pub(crate) fn agree(&self, about: &Value) -> Result<()> {
        let all = self.gather(about.to_string().into_bytes())?;
        let judged = self.broadcast(|| {
            let other = |(rank, theirs): (usize, &Vec<u8>)| {
                let theirs = serde_json::from_slice(theirs).unwrap_or(Value::Null);
                let differences = differences(about, &theirs);
                (!differences.is_empty()).then(|| self.shared.differs(rank, &differences))
            };
            Ok(all.iter().enumerate().find_map(other).unwrap_or_default().into_bytes())
        })?;
        if judged.is_empty() { Ok(()) } else { refuse(String::from_utf8_lossy(&judged)) }
    }

    fn receive(&self, link: usize) -> Result<Vec<u8>> {
        let inbox = lock(&self.inbox[link]);
        loop {
            match inbox.recv_timeout(LOOK) {
                Ok(bytes) => return Ok(bytes),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                // Why, the reader of the link has said.
                Err(RecvTimeoutError::Disconnected) => {
                    self.check()?;
                    return refuse(format!("{} has left before the end", self.shared.name(link)));
                }
            }
        }
    }

    /// Calls `let_go` once if the run fails: it should make a GPU stop to wait for those of others.
    pub(crate) fn on_failure(&self, let_go: impl FnOnce() + Send + 'static) {
        *lock(&self.shared.let_go) = Some(Box::new(let_go));
        if self.check().is_err() {
            self.shared.let_go();
        }
    }

    /// Says what this rank does.
    pub(crate) fn at(&self, step: u64, phase: Phase) {
        let shared = &self.shared;
        let before = shared.phase.swap(phase as u8, Relaxed);
        if before != phase as u8 {
            let mut since = lock(&shared.since);
            if before == Phase::Waiting as u8 {
                let mut longest = lock(&shared.longest);
                *longest = longest.max(since.elapsed());
            }
            *since = Instant::now();
        }
        shared.step.store(step, Relaxed);
    }

    /// Asks rank 0 to end the run in an orderly way.
    pub fn ask_to_stop(&self) {
        self.shared.stop.store(true, Relaxed);
        if !self.leads() {
            self.shared.links[0].send(Kind::Stop, &[]);
        }
    }

    /// Whether a rank has asked for that.
    pub fn asked_to_stop(&self) -> bool {
        self.shared.stop.load(Relaxed)
    }

    /// The end, as all ranks have agreed on it: from here on each goes its own way.
    pub(crate) fn part(&self) {
        self.shared.over.store(true, Relaxed);
        self.shared.links.iter().for_each(|link| link.send(Kind::Bye, &[]));
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if !self.shared.over.load(Relaxed) {
            self.fail("it has left the run");
        }
        self.shared.over.store(true, Relaxed);
        self.shared.links.iter().for_each(Link::close);
        let patience = if self.check().is_ok() { GRACE } else { GRACE / 4 };
        drop(Children(std::mem::take(&mut *lock(&self.children)), patience));
    }
}

/// Processes that are ended if they do not end by themselves in time.
struct Children(Vec<Child>, Duration);

impl Drop for Children {
    fn drop(&mut self) {
        let until = Instant::now() + self.1;
        for child in &mut self.0 {
            while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(LOOK);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Shared {
    fn new(place: Place, links: Vec<Link>) -> (Arc<Shared>, Vec<Receiver<Vec<u8>>>) {
        let shared = Arc::new(Shared {
            place,
            host: host(),
            links,
            failure: Mutex::default(),
            let_go: Mutex::default(),
            stop: AtomicBool::default(),
            over: AtomicBool::default(),
            step: AtomicU64::default(),
            phase: AtomicU8::default(),
            since: Mutex::new(Instant::now()),
            longest: Mutex::default(),
        });
        let inbox = (0..shared.links.len()).map(|link| {
            let (to, from) = mpsc::channel();
            let shared = shared.clone();
            thread::spawn(move || shared.listen_to(link, &to));
            from
        });
        let inbox = inbox.collect();
        (shared, inbox)
    }

    fn name(&self, link: usize) -> String {
        let Link { rank, host, .. } = &self.links[link];
        format!("rank {rank} (host {host})")
    }

    fn differs(&self, rank: usize, differences: &[String]) -> String {
        let host = self.links.iter().find(|link| link.rank == rank).map_or("", |link| &link.host);
        differs(rank, host, differences)
    }

    /// Ends the run for this reason; only the first counts.
    fn fail(&self, sentence: String) {
        {
            let mut failure = lock(&self.failure);
            if failure.is_some() || self.over.load(Relaxed) {
                return;
            }
            *failure = Some(Failure { sentence: sentence.clone(), at: Instant::now() });
        }
        self.links.iter().for_each(|link| link.send(Kind::Failure, sentence.as_bytes()));
        self.let_go();
    }

    fn let_go(&self) {
        if let Some(let_go) = lock(&self.let_go).take() {
            // It may take a while, and others wait for whoever has found the failure.
            thread::spawn(let_go);
        }
    }

    /// Takes what comes on a link until it ends.
    fn listen_to(&self, number: usize, inbox: &mpsc::Sender<Vec<u8>>) {
        let link = &self.links[number];
        loop {
            match link.receive() {
                Ok(Frame { kind: Kind::Beat, bytes }) => link.beat(&bytes),
                Ok(Frame { kind: Kind::Message, bytes }) => drop(inbox.send(bytes)),
                Ok(Frame { kind: Kind::Stop, .. }) => self.stop.store(true, Relaxed),
                Ok(Frame { kind: Kind::Failure, bytes }) => self.fail(String::from_utf8_lossy(&bytes).into_owned()),
                Ok(Frame { kind: Kind::Bye, .. }) => return link.leave(),
                _ => {
                    let step = link.heard().step;
                    let name = self.name(number);
                    return self.fail(format!(
                        "{name} is gone since step {step}: its process has ended or its machine is down"
                    ));
                }
            }
        }
    }

    /// Says that this rank is there, and looks whether the others are, until the end.
    fn watch(&self, stuck: impl Fn(&str)) {
        let patience = patience();
        while !self.over.load(Relaxed) {
            thread::sleep(BEAT.min(patience / 4));
            let failure = lock(&self.failure).clone();
            if let Some(Failure { sentence, at }) = failure {
                if at.elapsed() > GRACE {
                    stuck(&sentence);
                    return;
                }
                continue;
            }
            let beat = link::beat_of(self.step.load(Relaxed), self.phase.load(Relaxed), lock(&self.since).elapsed());
            self.links.iter().for_each(|link| link.send(Kind::Beat, &beat));
            if let Some(sentence) = self.lost(patience) {
                self.fail(sentence);
            }
        }
    }

    /// Who has been silent or idle for too long.
    fn lost(&self, patience: Duration) -> Option<String> {
        for (number, link) in self.links.iter().enumerate() {
            let heard = link.heard();
            if heard.at.elapsed() > patience && !link.has_left() {
                let seconds = patience.as_secs_f64();
                let name = self.name(number);
                return Some(format!(
                    "{name} has said nothing for {seconds} s, since step {}: it hangs or was stopped",
                    heard.step
                ));
            }
        }
        if self.place.rank != 0 {
            return None;
        }
        // Those whose GPUs wait, wait for one whose does not.
        let own = (self.phase.load(Relaxed), lock(&self.since).elapsed(), self.step.load(Relaxed), None);
        let all: Vec<_> = std::iter::once(own)
            .chain(self.links.iter().enumerate().map(|(number, link)| {
                let heard = link.heard();
                (heard.phase, heard.since + heard.at.elapsed(), heard.step, Some(number))
            }))
            .collect();
        let waiting = all.iter().filter(|(phase, since, ..)| *phase == Phase::Waiting as u8 && *since > patience);
        if waiting.count() == 0 {
            return None;
        }
        let name = |number: Option<usize>| number.map_or(format!("rank 0 (host {})", self.host), |n| self.name(n));
        let late = all.iter().find(|(phase, since, ..)| *phase != Phase::Waiting as u8 && *since > patience);
        if let Some((_, _, step, number)) = late {
            return Some(format!("{} hangs at step {step}, while others wait for it", name(*number)));
        }
        // All of them wait: no GPU may take that long.
        let most = patience.max(8 * *lock(&self.longest)).max(if own.2 < 3 { 50 * patience } else { patience });
        let (_, _, step, number) = all.iter().find(|(_, since, ..)| *since > most)?;
        Some(format!("the GPUs have not come to the end of step {step} on {}", name(*number)))
    }
}

fn differs(rank: usize, host: &str, differences: &[String]) -> String {
    let shown = differences[..differences.len().min(5)].join(", ");
    format!(
        "rank {rank} (host {host}) was started otherwise than rank 0: {shown}; start all ranks with the same program and options"
    )
}

/// In which fields two values differ, by their names.
fn differences(wanted: &Value, found: &Value) -> Vec<String> {
    fn walk(name: &str, wanted: &Value, found: &Value, into: &mut Vec<String>) {
        match (wanted, found) {
            (Value::Object(wanted), Value::Object(found)) => {
                let all: BTreeMap<_, _> = wanted.iter().chain(found).map(|(field, _)| (field, ())).collect();
                let of =
                    |object: &serde_json::Map<String, Value>, field| object.get(field).cloned().unwrap_or(Value::Null);
                all.keys().for_each(|field| walk(field, &of(wanted, *field), &of(found, *field), into));
            }
            _ if wanted != found => {
                let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                into.push(format!("{name} {} instead of {}", shown(found), shown(wanted)));
            }
            _ => {}
        }
    }
    let mut all = vec![];
    walk("", wanted, found, &mut all);
    all
}

// ---- Meeting -------------------------------------------------------------------------------------------------------

/// How long ranks wait for each other at first.
fn time_to_meet() -> Duration {
    25 * patience()
}

/// The first of the place's ports that is free.
fn listen(place: &Place) -> Result<TcpListener> {
    let addresses = addresses(place)?;
    let any = if addresses.iter().all(SocketAddr::is_ipv6) { "::" } else { "0.0.0.0" };
    let interface =
        if addresses.iter().all(|a| a.ip().is_loopback()) { addresses[0].ip().to_string() } else { any.into() };
    let bound = place.ports().find_map(|port| TcpListener::bind((interface.as_str(), port)).ok());
    bound.ok_or_else(|| {
        let (first, last) = (place.port, place.ports().last().expect("some"));
        Error::Ranks(format!(
            "the ports {first} to {last} of this machine are all in use: choose another with MASTER_PORT"
        ))
    })
}

fn addresses(place: &Place) -> Result<Vec<SocketAddr>> {
    let unknown = |why: String| {
        Error::Ranks(format!("the machine {:?} of rank 0 cannot be found: {why}; set MASTER_ADDR", place.address))
    };
    let found: Vec<SocketAddr> =
        (place.address.as_str(), place.port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?.collect();
    if found.is_empty() { Err(unknown("it has no address".into())) } else { Ok(found) }
}

fn hello(place: &Place, about: &Value) -> Value {
    json!({ "dood": 1, "job": place.job, "rank": place.rank, "ranks": place.count, "host": host(), "about": about })
}

type Connected = (Arc<Shared>, Vec<Receiver<Vec<u8>>>);

/// As rank 0: waits for the others, and looks at each.
fn lead(
    place: Place,
    listener: TcpListener,
    about: &Value,
    children: &mut [Child],
    within: Duration,
) -> Result<Connected> {
    let failed = |e: std::io::Error| Error::Ranks(format!("no connections can be taken: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let (to, callers) = mpsc::channel::<(Value, TcpStream)>();
    let mut links: BTreeMap<usize, Link> = BTreeMap::new();
    let until = Instant::now() + within;
    let refused = |links: &BTreeMap<usize, Link>, sentence: String| {
        links.values().for_each(|link| link.send(Kind::Failure, sentence.as_bytes()));
        refuse(sentence)
    };
    while links.len() + 1 < place.count {
        if let Ok((stream, _)) = listener.accept() {
            // Whoever says nothing, or nothing of ours, is a stranger, and holds nobody up.
            let to = to.clone();
            thread::spawn(move || {
                let _ = stream.set_nonblocking(false);
                if let Some(hello) = link::greeting(&stream) {
                    let _ = to.send((hello, stream));
                }
            });
        }
        for (i, child) in children.iter_mut().enumerate() {
            if let Ok(Some(status)) = child.try_wait() {
                return refused(&links, format!("rank {} ended before it had come ({status})", i + 1));
            }
        }
        if Instant::now() > until {
            let missing: Vec<String> =
                (1..place.count).filter(|r| !links.contains_key(r)).map(|r| r.to_string()).collect();
            let seconds = within.as_secs_f64();
            return refused(
                &links,
                format!("of {} ranks these have not come within {seconds} s: {}", place.count, missing.join(", ")),
            );
        }
        let Ok((hello, stream)) = callers.recv_timeout(LOOK) else { continue };
        if hello["job"] != place.job.as_str() {
            link::reply(&stream, Kind::Stranger, &[]);
            continue;
        }
        let (rank, theirs) = (hello["rank"].as_u64().unwrap_or(0) as usize, &hello["about"]);
        let host = hello["host"].as_str().unwrap_or_default().to_owned();
        let differences = differences(about, theirs);
        let why = if hello["ranks"] != place.count {
            Some(format!(
                "rank {rank} (host {host}) is one of {} ranks, and rank 0 one of {}",
                hello["ranks"], place.count
            ))
        } else if rank == 0 || links.contains_key(&rank) {
            Some(format!("two processes say that they are rank {rank} (one on host {host}): give each its own number"))
        } else if !differences.is_empty() {
            Some(differs(rank, &host, &differences))
        } else {
            None
        };
        if let Some(why) = why {
            link::reply(&stream, Kind::Failure, why.as_bytes());
            return refused(&links, why);
        }
        link::reply(&stream, Kind::Wait, &[]);
        links.insert(rank, Link::new(rank, host, stream)?);
    }
    links.values().for_each(|link| link.send(Kind::Welcome, host().as_bytes()));
    Ok(Shared::new(place, links.into_values().collect()))
}

/// As another rank: looks for rank 0, with more and more patience.
fn join(place: Place, about: &Value) -> Result<Connected> {
    let hello = hello(&place, about).to_string();
    let until = Instant::now() + time_to_meet();
    let mut pause = Duration::from_millis(25);
    loop {
        for address in addresses(&place)? {
            for port in place.ports() {
                let address = SocketAddr::new(address.ip(), port);
                let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { continue };
                link::reply(&stream, Kind::Hello, hello.as_bytes());
                match link::answer(&stream, Duration::from_secs(5)) {
                    Some(Frame { kind: Kind::Wait, .. }) => {}
                    Some(Frame { kind: Kind::Failure, bytes }) => return refuse(String::from_utf8_lossy(&bytes)),
                    _ => continue,
                }
                return match link::answer(&stream, time_to_meet()) {
                    Some(Frame { kind: Kind::Welcome, bytes }) => {
                        let link = Link::new(0, String::from_utf8_lossy(&bytes).into_owned(), stream)?;
                        Ok(Shared::new(place, vec![link]))
                    }
                    Some(Frame { kind: Kind::Failure, bytes }) => refuse(String::from_utf8_lossy(&bytes)),
                    _ => refuse("rank 0 ended before all ranks had come"),
                };
            }
        }
        if Instant::now() > until {
            let ports = (place.port, place.ports().last().expect("some"));
            return refuse(format!(
                "rank {} has not found rank 0 at {}, ports {} to {}, within {} s: is it started, and may it be reached from here?",
                place.rank,
                place.address,
                ports.0,
                ports.1,
                time_to_meet().as_secs_f64()
            ));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests;
