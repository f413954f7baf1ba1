//! A connection between rank 0 and another: frames of a length, a kind, and bytes.

use super::lock;
use crate::{Error, Result};
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Who calls, and for what.
    Hello,
    /// You are known; wait for the others.
    Wait,
    /// All have come.
    Welcome,
    /// You belong elsewhere.
    Stranger,
    /// I am here, at this step, doing this.
    Beat,
    /// For whoever asks for it next.
    Message,
    /// Please end in an orderly way.
    Stop,
    /// The run ends now, for this reason.
    Failure,
    /// I leave, as agreed.
    Bye,
}

const KINDS: [Kind; 9] = [
    Kind::Hello,
    Kind::Wait,
    Kind::Welcome,
    Kind::Stranger,
    Kind::Beat,
    Kind::Message,
    Kind::Stop,
    Kind::Failure,
    Kind::Bye,
];

pub(super) struct Frame {
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// The most bytes in a frame: what is longer was not sent by us.
const MOST: usize = 64 << 20;

fn write(mut stream: &TcpStream, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.extend((bytes.len() as u32).to_le_bytes());
    frame.push(kind as u8);
    frame.extend(bytes);
    stream.write_all(&frame)
}

fn read(mut stream: &TcpStream) -> io::Result<Frame> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
    let kind = KINDS.get(head[4] as usize).filter(|_| length <= MOST);
    let kind = *kind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no frame"))?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(Frame { kind, bytes })
}

/// What a caller says of itself, if it is one of ours.
pub(super) fn greeting(stream: &TcpStream) -> Option<Value> {
    let Frame { kind: Kind::Hello, bytes } = answer(stream, Duration::from_secs(5))? else { return None };
    let hello: Value = serde_json::from_slice(&bytes).ok()?;
    (hello["dood"] == 1).then_some(hello)
}

/// The next frame, if it comes in time.
pub(super) fn answer(stream: &TcpStream, within: Duration) -> Option<Frame> {
    stream.set_read_timeout(Some(within)).ok()?;
    read(stream).ok()
}

/// Sends a frame before there is a [`Link`]. Whoever is gone shows when they are listened to.
pub(super) fn reply(stream: &TcpStream, kind: Kind, bytes: &[u8]) {
    let _ = write(stream, kind, bytes);
}

pub(super) struct Link {
    /// Of whom it is.
    pub rank: usize,
    pub host: String,
    stream: TcpStream,
    out: Mutex<()>,
    heard: Mutex<Heard>,
    left: AtomicBool,
}

/// What was heard last.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    pub at: Instant,
    pub step: u64,
    pub phase: u8,
    /// How long it had been in that phase.
    pub since: Duration,
}

/// A beat in bytes.
pub(super) fn beat_of(step: u64, phase: u8, since: Duration) -> Vec<u8> {
    let mut bytes = step.to_le_bytes().to_vec();
    bytes.push(phase);
    bytes.extend((since.as_millis() as u64).to_le_bytes());
    bytes
}

impl Link {
    pub fn new(rank: usize, host: String, stream: TcpStream) -> Result<Self> {
        let failed = |e: io::Error| Error::Ranks(format!("the connection to rank {rank} cannot be used: {e}"));
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(None).map_err(failed)?;
        // Who does not read for that long hangs, and is found by its silence.
        stream.set_write_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
        let heard = Heard { at: Instant::now(), step: 0, phase: 0, since: Duration::ZERO };
        Ok(Link { rank, host, stream, out: Mutex::new(()), heard: Mutex::new(heard), left: AtomicBool::new(false) })
    }

    /// Sends a frame; that it cannot be sent shows when the link is listened to.
    pub fn send(&self, kind: Kind, bytes: &[u8]) {
        let _whole = lock(&self.out);
        let _ = write(&self.stream, kind, bytes);
    }

    pub fn receive(&self) -> io::Result<Frame> {
        let frame = read(&self.stream)?;
        lock(&self.heard).at = Instant::now();
        Ok(frame)
    }

    pub fn beat(&self, bytes: &[u8]) {
        if bytes.len() == 17 {
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            let mut heard = lock(&self.heard);
            (heard.step, heard.phase, heard.since) = (word(0), bytes[8], Duration::from_millis(word(9)));
        }
    }

    pub fn heard(&self) -> Heard {
        *lock(&self.heard)
    }

    pub fn leave(&self) {
        self.left.store(true, Relaxed);
    }

    pub fn has_left(&self) -> bool {
        self.left.load(Relaxed)
    }

    pub fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
