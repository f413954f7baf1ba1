//! The program `draw` with a tiny model, and just enough HTTP to ask it anything, also what no client would.
#![allow(dead_code)]

use super::{
    lively,
    programs::{Running, program},
    tiny,
};
use dood::{
    Device,
    checkpoint::save,
    model::{Config, Variant},
    ops::Placement,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::{NamedTempFile, TempDir};

/// The program, and where it runs.
pub struct Page {
    pub program: Running,
    pub port: u16,
    pub folder: PathBuf,
    kept: Option<TempDir>,
    said: NamedTempFile,
}

/// A model that knows nothing, but draws different things.
pub fn model(path: &Path, variant: Variant) {
    let (model, params) = lively(&Config { variant, ..tiny(Placement::Points) }, &Device::cpu());
    save(path, &model.config, &params, None).unwrap();
}

impl Page {
    /// With the tiny model, at any free port unless `more` names one.
    pub fn open(more: &[&str]) -> Page {
        let folder = tempfile::tempdir().unwrap();
        model(&folder.path().join("tiny.safetensors"), Variant::Dood);
        Page::in_folder(folder.path(), more).keeping(folder)
    }

    /// Its folder is there as long as the program.
    pub fn keeping(self, folder: TempDir) -> Page {
        Page { kept: Some(folder), ..self }
    }

    /// In a folder that has the model.
    pub fn in_folder(folder: &Path, more: &[&str]) -> Page {
        let mut command = program("draw");
        command.args(["--checkpoint", "tiny.safetensors", "--device", "cpu"]).args(more).current_dir(folder);
        if !more.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        Page::start(command)
    }

    /// Starts the program and waits until it says where it is.
    pub fn start(mut command: std::process::Command) -> Page {
        let folder = command.get_current_dir().unwrap_or(Path::new(".")).to_owned();
        let said = NamedTempFile::new().unwrap();
        command.stdout(Stdio::piped()).stderr(said.reopen().unwrap());
        let mut program = Running(command.spawn().unwrap());
        let out = BufReader::new(program.0.stdout.take().unwrap());
        let port = out.lines().map_while(Result::ok).find_map(|line| {
            let rest = line.split("http://127.0.0.1:").nth(1)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        let port = port.unwrap_or_else(|| panic!("no address: {}", fs::read_to_string(&said).unwrap()));
        Page { program, port, folder, kept: None, said }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send(&request(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}", self.port), b""))
    }

    pub fn ask(&self, kind: &str, body: &Value) -> Reply {
        self.send(&post(&format!("/api/{kind}"), self.port, body.to_string().as_bytes()))
    }

    #[track_caller]
    pub fn send(&self, bytes: &[u8]) -> Reply {
        send(self.port, bytes).expect("an answer")
    }

    /// Nothing has gone wrong inside.
    #[track_caller]
    pub fn unharmed(&self) {
        let said = fs::read_to_string(&self.said).unwrap();
        assert!(!said.contains("panicked"), "{said}");
    }

    /// Bytes that it holds now, and has held at most.
    pub fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    pub fn peak_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.program.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10)
    }
}

/// What came back.
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A request whose head begins so.
pub fn request(head: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub fn post(path: &str, port: u16, body: &[u8]) -> Vec<u8> {
    request(&format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json"), body)
}

/// Sends bytes as they are; none where the other side closes without an answer.
pub fn send(port: u16, bytes: &[u8]) -> Option<Reply> {
    let connect = || TcpStream::connect(("127.0.0.1", port)).ok();
    // A burst of clients may find the line of the operating system full.
    let mut stream = (0..50).find_map(|_| {
        connect().or_else(|| {
            std::thread::sleep(Duration::from_millis(20));
            None
        })
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    // It may answer, and close, before it has read all.
    if let Err(e) = stream.write_all(bytes) {
        assert!([ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&e.kind()), "{e}");
    }
    let mut all = vec![];
    let mut chunk = [0; 1 << 14];
    loop {
        if let Some(reply) = whole(&all) {
            return Some(reply);
        }
        match stream.read(&mut chunk) {
            Ok(0) => return None,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("no answer: {e}"),
        }
    }
}

/// A reply, once all of it has come.
fn whole(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let reply = Reply { status, head, body: bytes[end + 4..].to_vec() };
    let length: usize = reply.header("content-length").map_or(0, |n| n.parse().unwrap());
    (reply.body.len() >= length).then_some(reply)
}
