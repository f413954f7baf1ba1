//! A page to draw in: the model redraws, completes and varies what a hand draws. Nothing leaves this machine.
//!
//! `server` speaks HTTP, `api` is the protocol, `queue` the line in front of the model, `studio` where it draws, `models` the menu and
//! `page/` what the browser gets.

mod api;
#[path = "../common/mod.rs"]
mod common;
mod models;
mod picture;
mod queue;
mod server;
mod studio;

use clap::Parser;
use common::{Compute, Screen, say};
use dood::{Error, Result};
use models::Menu;
use queue::Queue;
use server::Server;
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};
use studio::Studio;
use tokio::sync::oneshot;

/// Opens a page to draw in: the model redraws what you draw, finishes what you begin, and draws it as other hands would.
///
/// The page is served on this machine only, by this program alone: nothing is fetched, nothing is sent anywhere, no file is written.
/// Programs can ask for the same by HTTP and JSON: see docs/page.md.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  draw --open
  draw --checkpoint runs/mnist-quick-warp --port 8080

  curl http://127.0.0.1:7878/api
  curl http://127.0.0.1:7878/api/imagine -H 'Content-Type: application/json' -d '{\"version\": 1, \"count\": 4}'")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships; several may be named. Models that ship and
    /// those of runs in ./runs are in the page's menu anyway
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: Vec<PathBuf>,
    /// Where the page is; the next port that is free, if this one is taken
    #[arg(long, default_value_t = 7878)]
    port: u16,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
    /// Requests that may wait for the model; further ones are told to come again
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=10_000), value_name = "N")]
    queue: u16,
    /// Seconds that a request may take to arrive
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600), value_name = "SECONDS")]
    patience: u16,
    #[command(flatten)]
    compute: Compute,
}

fn draw(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let menu = Menu::new(arguments.checkpoint);
    let models = menu.entries()?;
    let first = models.first().ok_or_else(|| {
        Error::Usage("there is no model: name one with --checkpoint, or train one with the program train".into())
    })?;
    let mut studio = Studio::new(arguments.compute.open(screen)?);
    studio.artist(first)?;
    let listener = listen(arguments.port)?;
    let port = listener.local_addr().map_err(unable)?.port();
    let queue = Arc::new(Queue::new(arguments.queue.into()));
    let server = Server::new(menu, queue.clone(), port, Duration::from_secs(arguments.patience.into()));
    let (end, ended) = oneshot::channel();
    let serving = thread::spawn(move || server.serve(listener, ended));

    let address = format!("http://127.0.0.1:{port}");
    match models.len() {
        1 => say!("The model {} draws.", first.id),
        n => say!("{n} models can be chosen; {} draws first.", first.id),
    }
    say!("Draw at {address} (Ctrl-C ends it).");
    if arguments.open && !open(&address) {
        say!("No browser could be started: open the address yourself.");
    }
    studio.work(&queue, screen);
    drop(end);
    match serving.join() {
        Ok(Err(e)) => Err(unable(e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn unable(source: std::io::Error) -> Error {
    Error::Io { what: "cannot serve the page".into(), source }
}

/// Listens on the loopback, at this port or the next that is free.
fn listen(port: u16) -> Result<TcpListener> {
    const TRIED: u16 = 100;
    let mut ports = (port..=port.saturating_add(TRIED)).peekable();
    while let Some(port) = ports.next() {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == ErrorKind::AddrInUse && ports.peek().is_some() => {}
            Err(e) => {
                return Err(Error::Usage(format!("port {port} cannot be used ({e}): choose another with --port")));
            }
        }
    }
    unreachable!("the last port returns")
}

/// Starts the browser; whether that was possible.
fn open(address: &str) -> bool {
    let starts: &[&[&str]] = if cfg!(windows) {
        &[&["rundll32", "url.dll,FileProtocolHandler"]]
    } else if cfg!(target_os = "macos") {
        &[&["open"]]
    } else {
        &[&["xdg-open"], &["gio", "open"], &["wslview"]]
    };
    starts.iter().any(|start| {
        let mut command = Command::new(start[0]);
        command.args(&start[1..]).arg(address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok()
    })
}

fn main() -> ExitCode {
    common::main(draw)
}
