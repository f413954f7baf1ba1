//! Fetching the public sets from their official addresses, once, into a cache folder.
//!
//! A file is collected beside its place as `NAME.partial`, checked, and renamed when it is whole and right. A broken
//! download is continued where it stopped, now or when the program is started again. A file that is there already is checked in
//! the same way, and fetched anew if it is not what it should be.
//!
//! How a file is checked: QuickDraw, the Omniglot images and EMNIST by the SHA-256 of the file that TensorFlow Datasets
//! publishes (its `url_checksums`). MNIST and KMNIST by the SHA-256 of the unpacked bytes, because mirrors pack them
//! differently. For Omniglot's one-shot runs no SHA-256 is published; that file must contain the 20 complete runs.

mod signer;

use super::{
    Set, Source,
    files_in::locate,
    idx::{Gunzip, is_gzip},
    omniglot, sniff,
};
use crate::{Error, Observer, Result, files, observer::Unit};
use sha2::{Digest, Sha256};
use signer::signer;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};
use ureq::{
    http::{HeaderMap, StatusCode},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

/// Where a set is kept if no folder is named: `$DOOD_CACHE/SET`, `$XDG_CACHE_HOME/dood/SET` or `~/.cache/dood/SET`.
pub fn cache_folder(set: Set) -> PathBuf {
    files::cache_folder().join(set.name())
}

/// Fetches the files of `source` into its folder from the official addresses; nothing to do if they are there and right.
///
/// `observer` hears how far it is, and may stop it within a second; what has arrived is kept for the next time. MNIST takes 12 MB, KMNIST 21 MB, Omniglot 16 MB, EMNIST 562 MB (of which 35 MB are kept),
/// QuickDraw 1.1 GB. [`Source::Idx`] and [`Source::Synthetic`] have nothing to fetch, which is an [`Error::Usage`].
pub fn fetch(source: &Source, observer: &dyn Observer) -> Result<()> {
    Downloader::default().fetch(source, observer)
}

/// A file to fetch.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its full address.
    pub address: String,
    /// The name it gets.
    pub name: String,
    /// How to know that it is right.
    pub check: Check,
}

/// How to know that a file is right.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Its length in bytes and its SHA-256 in lower-case hexadecimal digits.
    File(u64, &'static str),
    /// The SHA-256 of what it contains when unpacked with gzip.
    Unpacked(&'static str),
    /// It can be parsed. The second argument is what errors call the file.
    Parses(fn(&[u8], &str) -> Result<()>),
}

/// How to fetch. [`fetch`] uses the defaults.
#[derive(Clone, Debug)]
pub struct Downloader {
    /// Take every file from `MIRROR/NAME` instead of its official address. The checks stay the same.
    pub mirror: Option<String>,
    /// How many attempts in a row may fail without any progress.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each further one.
    pub pause: Duration,
    /// A file in PEM form with the certificates of the authorities to trust, instead of those that the system trusts. By
    /// default the one that `SSL_CERT_FILE` names.
    pub certificates: Option<PathBuf>,
}

impl Default for Downloader {
    fn default() -> Self {
        // Where SSL_CERT_DIR is set too, what the system trusts comes from both.
        let certificates = std::env::var_os("SSL_CERT_FILE").filter(|_| std::env::var_os("SSL_CERT_DIR").is_none());
        Downloader {
            mirror: None,
            attempts: 5,
            pause: Duration::from_secs(1),
            certificates: certificates.map(Into::into),
        }
    }
}

impl Downloader {
    /// Fetches the files of `source` into its folder; nothing to do if they are there and right.
    pub fn fetch(&self, source: &Source, observer: &dyn Observer) -> Result<()> {
        let Source::Public { set, folder } = source else {
            return Err(Error::Usage(format!("`{source}` cannot be downloaded: only the public sets have an address")));
        };
        let folder = &locate(folder, &|folder| set.any_in(folder), &|folder| set.is_in(folder))?;
        let complete = set.is_in(folder);
        let archived = *set == Set::Emnist;
        if archived && complete && emnist_is_whole(folder, observer)? {
            return Ok(());
        }
        files::create_folder(folder)?;
        for mut remote in remotes(*set) {
            if complete && !archived && remote.held(folder).is_empty() {
                // In another form, which only reading it can check.
                continue;
            }
            if let Some(mirror) = &self.mirror {
                remote.address = format!("{}/{}", mirror.trim_end_matches('/'), remote.name.replace(' ', "%20"));
            }
            self.file(&remote, folder, observer)?;
        }
        if archived { unpack_emnist(folder) } else { Ok(()) }
    }

    /// Fetches one file into `folder` and checks it; nothing to do if it is there and right.
    ///
    /// What was there and is not right is put aside as `NAME.replaced`, once the right file has arrived; unless it is a web page
    /// or the like, of which nothing is kept. When this fails, no file of that name appears. What has arrived is kept for the
    /// next attempt as `NAME.partial`, unless it is wrong.
    pub fn file(&self, remote: &Remote, folder: &Path, observer: &dyn Observer) -> Result<()> {
        let path = folder.join(&remote.name);
        let mut wrong: Vec<(PathBuf, Error)> = Vec::new();
        for held in remote.held(folder) {
            let mut file = File::open(&held).map_err(|e| Error::io("read", &held, e))?;
            // How long a packed file is says nothing of how much there is to check.
            let total = length(&file, &held).ok().filter(|_| matches!(remote.check, Check::File(..)));
            observer.begin(&format!("Checking {}", remote.name), total, Unit::Bytes);
            let checked = check(remote, &mut file, &held, observer);
            observer.end();
            match checked {
                Ok(()) => return wrong.iter().try_for_each(|(held, _)| put_aside(held)),
                Err(Failure::Kept(error)) => return Err(error),
                Err(Failure::Wrong(error)) => wrong.push((held, error)),
            }
        }
        for (held, error) in &wrong {
            observer
                .note(&format!("{} is not the file that it should be ({error}) and is fetched anew.", held.display()));
        }
        let partial = folder.join(format!("{}.partial", remote.name));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let mut file = open.map_err(|e| Error::io("write", &partial, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(Error::Download(format!("{path} is being downloaded by another process: wait for it")));
            }
            // Not every file system can lock; then two downloads at once are caught by the check.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let continued = length(&file, &partial)? > 0;
        let get = |file: &mut File| {
            self.receive(remote, file, &partial, observer).and_then(|()| check(remote, file, &partial, observer))
        };
        let mut result = get(&mut file);
        if matches!(result, Err(Failure::Wrong(_))) && continued {
            // The old beginning may belong to another version of the file: once more from the start.
            truncate(&mut file, &partial)?;
            result = get(&mut file);
        }
        match result {
            Ok(()) => {
                wrong.iter().try_for_each(|(held, _)| put_aside(held))?;
                fs::rename(&partial, &path).map_err(|e| Error::io("write", &path, e))
            }
            Err(Failure::Wrong(error)) => {
                let _ = fs::remove_file(&partial);
                Err(Error::Download(format!(
                    "{} is not the expected file: {error}; {}",
                    remote.address,
                    remote.by_hand(folder)
                )))
            }
            Err(Failure::Kept(error)) => {
                if file.metadata().is_ok_and(|held| held.len() == 0) {
                    let _ = fs::remove_file(&partial);
                }
                Err(error)
            }
        }
    }

    /// Appends to `file` until it is whole, with pauses and new attempts when the connection breaks.
    fn receive(&self, remote: &Remote, file: &mut File, path: &Path, observer: &dyn Observer) -> Result<(), Failure> {
        let (mut failed, mut most) = (0, length(file, path)?);
        let (roots, folder) = (self.roots()?, path.parent().unwrap_or(path));
        loop {
            observer.go_on()?;
            let (reason, attempts) = match attempt(remote, &roots, file, path, observer) {
                Ok(()) => return file.sync_all().map_err(|e| Failure::Kept(Error::io("write", path, e))),
                Err(Broken::Final(failure)) => return Err(failure),
                Err(Broken::Again(reason)) => (reason, self.attempts),
                Err(Broken::Once(reason)) => (reason, self.attempts.min(2)),
                Err(Broken::Never(reason)) => {
                    let (address, by_hand) = (&remote.address, remote.by_hand(folder));
                    return Err(Failure::Kept(Error::Download(format!(
                        "cannot download {address}: {reason}; {by_hand}"
                    ))));
                }
            };
            let held = length(file, path)?;
            failed = if held > most { 1 } else { failed + 1 };
            most = most.max(held);
            if failed >= attempts {
                return Err(Failure::Kept(Error::Download(format!(
                    "cannot download {} ({reason}): check the network connection and run the same command again, which \
                     continues after the {held} bytes that have arrived, or {}",
                    remote.address,
                    remote.by_hand(folder),
                ))));
            }
            wait(self.pause * 2u32.pow((failed - 1).min(6)), observer)?;
        }
    }

    /// Whom to trust.
    fn roots(&self) -> Result<RootCerts> {
        let Some(path) = &self.certificates else { return Ok(RootCerts::PlatformVerifier) };
        let bytes = files::read(path)?;
        let certificates = parse_pem(&bytes).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(Error::Download(format!(
                "{} holds no certificates in PEM form: name a file that does with SSL_CERT_FILE, or unset it",
                path.display()
            )));
        }
        Ok(RootCerts::new_with_certs(&certificates))
    }
}

impl Remote {
    /// The files of `folder` that stand for this one: itself, and without its `.gz` where the check does not mind.
    fn held(&self, folder: &Path) -> Vec<PathBuf> {
        let unpacked = self.name.strip_suffix(".gz").filter(|_| matches!(self.check, Check::Unpacked(_)));
        // The unpacked one wins when they are read.
        let names = unpacked.into_iter().chain([self.name.as_str()]);
        names.map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    }

    /// What a user can do where nothing else helps.
    fn by_hand(&self, folder: &Path) -> String {
        format!("put {} into {} by other means", self.name, folder.display())
    }
}

/// Takes a wrong file out of the way; keeps it if it may be somebody's work.
fn put_aside(path: &Path) -> Result<()> {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(512).read_to_end(&mut begin));
    let worthless = read.is_ok() && junk(&begin).is_some();
    let mut aside = path.as_os_str().to_owned();
    aside.push(".replaced");
    let done = if worthless { fs::remove_file(path) } else { fs::rename(path, aside) };
    done.map_err(|e| Error::io("replace", path, e))
}

/// What these bytes begin, if it is what servers and tools leave in place of a file.
fn junk(begin: &[u8]) -> Option<&'static str> {
    const JUNK: [&str; 5] = ["web page", "empty file", "XML", "Git LFS", "a text"];
    sniff(begin).filter(|what| JUNK.iter().any(|junk| what.contains(junk)))
}

/// How often the observer is asked while nothing arrives.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn wait(pause: Duration, observer: &dyn Observer) -> Result<()> {
    let end = Instant::now() + pause;
    loop {
        observer.go_on()?;
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            left => thread::sleep(left.min(LOOK_EVERY)),
        }
    }
}

/// Why a file did not arrive.
enum Failure {
    /// What has arrived may be continued.
    Kept(Error),
    /// What has arrived is not the right file.
    Wrong(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Kept(error)
    }
}

/// Why an attempt ended early.
enum Broken {
    /// Another attempt may succeed.
    Again(String),
    /// One more attempt may succeed, but not many more.
    Once(String),
    /// No other attempt can succeed.
    Never(String),
    Final(Failure),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Final(Failure::Kept(error))
    }
}

/// One request, for what `file` does not hold yet. `Ok` means that the file is whole.
fn attempt(
    remote: &Remote,
    roots: &RootCerts,
    file: &mut File,
    path: &Path,
    observer: &dyn Observer,
) -> Result<(), Broken> {
    let had = length(file, path)?;
    let mut answer = Answer::to(&remote.address, had, roots.clone());
    let (status, headers) = match answer.next(observer)? {
        Some(Part::Head(status, headers)) => (status, headers),
        Some(Part::Error(broken)) => return Err(broken),
        Some(Part::Bytes(_)) | None => return Err(Broken::Again("the server did not answer".into())),
    };
    let whole = match status {
        StatusCode::OK => {
            truncate(file, path)?;
            number(&headers, "content-length", None)
        }
        // The server must have understood which bytes are wanted.
        StatusCode::PARTIAL_CONTENT if starts_at(&headers, had) => number(&headers, "content-range", Some('/')),
        StatusCode::RANGE_NOT_SATISFIABLE if had > 0 && number(&headers, "content-range", Some('/')) == Some(had) => {
            return Ok(());
        }
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if had > 0 => {
            truncate(file, path)?;
            return Err(Broken::Again("the server did not continue where the download had stopped".into()));
        }
        status if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
            return Err(Broken::Again(format!("the server answered {status}")));
        }
        status => return Err(Broken::Never(format!("the server answered {status}, the file may have moved"))),
    };
    let page = headers.get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if let (Some(whole), Check::File(size, _)) = (whole, remote.check)
        && whole != size
    {
        let what = if page { "it is a web page: the network may want you to log in first, in a browser; " } else { "" };
        let what = format!("{what}it has {whole} bytes instead of {size}");
        return Err(Broken::Final(Failure::Wrong(Error::Download(what))));
    }
    observer.begin(&format!("Fetching {}", remote.name), whole, Unit::Bytes);
    let appended = append(&mut answer, file, path, observer);
    observer.end();
    appended?;
    let held = length(file, path)?;
    match whole {
        Some(whole) if held < whole => {
            Err(Broken::Again(format!("the connection closed after {held} of {whole} bytes")))
        }
        _ => Ok(()),
    }
}

/// What a server sends, in this order: a head, then bytes; an error may take the place of either.
enum Part {
    Head(StatusCode, HeaderMap),
    Bytes(Vec<u8>),
    Error(Broken),
}

/// A request that is being answered. A thread of its own waits for the network, so that nothing here waits for long; it ends by
/// itself when nobody wants its parts any more.
struct Answer(Receiver<Part>);

impl Answer {
    /// Asks for the bytes of `address` from `start` on.
    fn to(address: &str, start: u64, roots: RootCerts) -> Self {
        let (to, from) = sync_channel(16);
        let address = address.to_owned();
        thread::spawn(move || {
            let send = |to: &SyncSender<Part>, part| to.send(part).is_ok();
            let call = |roots| {
                let request = agent(roots).get(&address);
                if start > 0 { request.header("Range", format!("bytes={start}-")).call() } else { request.call() }
            };
            let mut response = call(roots);
            // A system that trusts nobody, as small containers do, has no opinion: then Mozilla's list counts.
            if response.as_ref().is_err_and(|e| e.to_string().contains("No CA certificates were loaded")) {
                response = call(RootCerts::WebPki);
            }
            let mut body = match response {
                Err(e) => return drop(to.send(Part::Error(broken(e, &address)))),
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    if !send(&to, Part::Head(head.status, head.headers)) {
                        return;
                    }
                    body.into_reader()
                }
            };
            let mut buffer = vec![0; 1 << 16];
            loop {
                let part = match body.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => Part::Bytes(buffer[..n].to_vec()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return drop(to.send(Part::Error(Broken::Again(e.to_string())))),
                };
                if !send(&to, part) {
                    return;
                }
            }
        });
        Answer(from)
    }

    /// The next part; `None` where there are no more.
    fn next(&mut self, observer: &dyn Observer) -> Result<Option<Part>> {
        loop {
            observer.go_on()?;
            match self.0.recv_timeout(LOOK_EVERY) {
                Ok(part) => return Ok(Some(part)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// What an error of the network means for further attempts.
fn broken(error: ureq::Error, address: &str) -> Broken {
    let tls = match &error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(e) => e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match (tls, &error) {
        (Some(rustls::Error::InvalidCertificate(why)), _) => Broken::Never(format!(
            "the certificate of the server is refused ({}{}): if your network has an authority of its own, name its certificate with \
             SSL_CERT_FILE=FILE.pem; or",
            rustls::Error::InvalidCertificate(why.clone()),
            signer(address).map(|signer| format!("; {signer}")).unwrap_or_default()
        )),
        (Some(_), _) => Broken::Never(error.to_string()),
        (None, ureq::Error::HostNotFound) => Broken::Once(error.to_string()),
        // What the systems say of a name that does not exist.
        (None, ureq::Error::Io(e))
            if ["lookup address", "No such host"].iter().any(|words| e.to_string().contains(words)) =>
        {
            Broken::Once(e.to_string())
        }
        (
            None,
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_),
        ) => Broken::Again(error.to_string()),
        _ => Broken::Never(error.to_string()),
    }
}

fn agent(roots: RootCerts) -> ureq::Agent {
    ureq::Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        // The bytes as they are: a file that the server packs on the way could not be continued.
        .accept_encoding("identity")
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .new_agent()
}

/// A number in one of the headers: all of it, or what follows the last `after`.
fn number(headers: &HeaderMap, header: &str, after: Option<char>) -> Option<u64> {
    let value = headers.get(header)?.to_str().ok()?;
    after.map_or(Some(value), |c| value.rsplit_once(c).map(|(_, rest)| rest))?.trim().parse().ok()
}

/// Whether the response says that its body begins at byte `start` of the file.
fn starts_at(headers: &HeaderMap, start: u64) -> bool {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.trim().starts_with(&format!("bytes {start}-")))
}

fn append(answer: &mut Answer, file: &mut File, path: &Path, observer: &dyn Observer) -> Result<(), Broken> {
    let full = |e| Broken::from(Error::io("write", path, e));
    observer.already(file.seek(SeekFrom::End(0)).map_err(full)?);
    loop {
        match answer.next(observer)? {
            Some(Part::Bytes(bytes)) => {
                file.write_all(&bytes).map_err(full)?;
                observer.advance(bytes.len() as u64);
            }
            Some(Part::Error(broken)) => return Err(broken),
            Some(Part::Head(..)) | None => return Ok(()),
        }
    }
}

fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(|e| Error::io("read", path, e))?.len())
}

fn truncate(file: &mut File, path: &Path) -> Result<()> {
    file.set_len(0).and_then(|()| file.rewind()).map_err(|e| Error::io("write", path, e))
}

/// Compares a file with what is known about it. [`Failure::Wrong`] says what it is instead, without a name.
fn check(remote: &Remote, file: &mut File, path: &Path, observer: &dyn Observer) -> Result<(), Failure> {
    let unreadable = |e| Error::io("read", path, e);
    file.rewind().map_err(unreadable)?;
    let error = match compare(remote, file, path, observer) {
        Err(Failure::Wrong(error)) => error,
        other => return other,
    };
    let mut begin = Vec::new();
    file.rewind().and_then(|()| file.take(512).read_to_end(&mut begin)).map_err(unreadable)?;
    Err(Failure::Wrong(match junk(&begin) {
        Some("a web page") => {
            Error::Download("it is a web page: the network may want you to log in first, in a browser".into())
        }
        Some(what) => Error::Download(format!("it is {what}")),
        None => error,
    }))
}

fn compare(remote: &Remote, file: &mut File, path: &Path, observer: &dyn Observer) -> Result<(), Failure> {
    let wrong = |what: String| Failure::Wrong(Error::Download(what));
    let unreadable = |e| Error::io("read", path, e);
    let whole = |file: &mut File| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes).map_err(unreadable)
    };
    let (expected, found) = match remote.check {
        Check::Parses(parse) => return parse(&whole(file)?, &remote.name).map_err(|e| wrong(e.to_string())),
        Check::File(size, _) if length(file, path)? != size => {
            return Err(wrong(format!("it has {} bytes instead of {size}", length(file, path)?)));
        }
        Check::File(_, digest) => (digest, digest_of(file, observer)?.map_err(unreadable)?),
        Check::Unpacked(digest) => {
            let bytes = whole(file)?;
            let unpacked = if is_gzip(&bytes) {
                digest_of(&mut Gunzip::new(&bytes), observer)?
            } else {
                digest_of(&mut &bytes[..], observer)?
            };
            (digest, unpacked.map_err(|e| wrong(format!("it cannot be unpacked, {e}")))?)
        }
    };
    if expected == found { Ok(()) } else { Err(wrong(format!("its SHA-256 is {found} instead of {expected}"))) }
}

fn digest_of(reader: &mut impl Read, observer: &dyn Observer) -> Result<io::Result<String>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        observer.go_on()?;
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Ok(files::hex(&hash.finalize()))),
            Ok(n) => {
                hash.update(&buffer[..n]);
                observer.advance(n as u64);
            }
            Err(e) => return Ok(Err(e)),
        }
    }
}

/// The files that are taken out of NIST's archive.
fn emnist_files() -> impl Iterator<Item = String> {
    let parts = ["train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1"];
    parts.into_iter().map(|part| format!("emnist-balanced-{part}-ubyte.gz"))
}

/// Whether those that are there can be unpacked.
fn emnist_is_whole(folder: &Path, observer: &dyn Observer) -> Result<bool> {
    for path in emnist_files().map(|name| folder.join(name)).filter(|path| path.is_file()) {
        if let Err(e) = digest_of(&mut Gunzip::new(&files::read(&path)?), observer)? {
            observer.note(&format!("{} cannot be unpacked ({e}): it is fetched anew.", path.display()));
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the four files of the balanced split out of NIST's archive of all splits, which is then deleted.
fn unpack_emnist(folder: &Path) -> Result<()> {
    let path = folder.join(EMNIST_ARCHIVE);
    let file = File::open(&path).map_err(|e| Error::io("read", &path, e))?;
    let damaged = |e: zip::result::ZipError| {
        Error::Download(format!(
            "{} cannot be unpacked ({e}): delete it, and --download fetches it anew",
            path.display()
        ))
    };
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(damaged)?;
    for name in emnist_files() {
        let mut packed = archive.by_name(&format!("gzip/{name}")).map_err(damaged)?;
        files::write_atomically(&folder.join(&name), |out| io::copy(&mut packed, out).map(|_| ()))?;
    }
    fs::remove_file(&path).map_err(|e| Error::io("delete", &path, e))
}

const EMNIST_ARCHIVE: &str = "gzip.zip";

/// The files of a set at their official addresses.
pub fn remotes(set: Set) -> Vec<Remote> {
    let all = |base: &str, list: &[(&str, Check)]| {
        let remote = |&(name, check): &(&str, Check)| Remote {
            address: format!("{base}/{}", name.replace(' ', "%20")),
            name: name.into(),
            check,
        };
        list.iter().map(remote).collect()
    };
    match set {
        Set::Mnist => all("https://ossci-datasets.s3.amazonaws.com/mnist", &MNIST),
        Set::Kmnist => all("http://codh.rois.ac.jp/kmnist/dataset/kmnist", &KMNIST),
        Set::Emnist => all("https://biometrics.nist.gov/cs_links/EMNIST", &EMNIST),
        Set::QuickDraw => all("https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap", &QUICKDRAW),
        Set::Omniglot => {
            let mut images: Vec<Remote> = all("https://github.com/brendenlake/omniglot/raw/master/python", &OMNIGLOT);
            images.extend(all(
                "https://github.com/brendenlake/omniglot/raw/master/python/one-shot-classification",
                &[(
                    "all_runs.zip",
                    Check::Parses(|bytes, name| omniglot::runs(&omniglot::unzip(bytes, name)?, name, 1).map(|_| ())),
                )],
            ));
            images
        }
    }
}

const MNIST: [(&str, Check); 4] = [
    ("train-images-idx3-ubyte.gz", Check::Unpacked("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db")),
    ("train-labels-idx1-ubyte.gz", Check::Unpacked("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5")),
    ("t10k-images-idx3-ubyte.gz", Check::Unpacked("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7")),
    ("t10k-labels-idx1-ubyte.gz", Check::Unpacked("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2")),
];

const KMNIST: [(&str, Check); 4] = [
    ("train-images-idx3-ubyte.gz", Check::Unpacked("7112ba9ec422d98de4885262d4a4dff14cc4fefb81c11ace8bf563a8255df5c3")),
    ("train-labels-idx1-ubyte.gz", Check::Unpacked("2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b")),
    ("t10k-images-idx3-ubyte.gz", Check::Unpacked("76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e")),
    ("t10k-labels-idx1-ubyte.gz", Check::Unpacked("a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6")),
];

const EMNIST: [(&str, Check); 1] =
    [(EMNIST_ARCHIVE, Check::File(561_753_746, "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"))];

const OMNIGLOT: [(&str, Check); 2] = [
    (
        "images_background.zip",
        Check::File(9_464_212, "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640"),
    ),
    (
        "images_evaluation.zip",
        Check::File(6_462_886, "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"),
    ),
];

const QUICKDRAW: [(&str, Check); 10] = [
    ("airplane.npy", Check::File(118_872_512, "88c5a8801901e6841ee249115a2a1f8b72e79c0eb7b0fb507044122ad3e78843")),
    ("apple.npy", Check::File(113_462_128, "a70df0030c146cfe4aa9a17aa2a320d5f64ac166fdc3d2cfb439b8322fd8bb0d")),
    ("bicycle.npy", Check::File(99_197_248, "1211e79d1799e56734e2c2ce55d6af2405ae0a4e329fa46a6496670e90ac79d8")),
    ("book.npy", Check::File(93_581_456, "15ab7904b874251073ce3557e0d3f83c8b9d0e9e1d0320eb41323652a923a0c1")),
    ("car.npy", Check::File(143_287_056, "5de0399e09a5419552b77de480cb23b488dbfe3c4d09cee9ca8c2141102272e1")),
    ("cell phone.npy", Check::File(94_966_000, "b03373366222b23061f0b945076dd059e610e39bcac84f082c5a4c6988e55e5d")),
    ("eye.npy", Check::File(98_696_272, "e804058c35d2707dd17a79c91d9832806c1ca4b90439261baf119ff6c436bee5")),
    ("eyeglasses.npy", Check::File(176_997_488, "f8f36e5921edee13d5bfa3b832cdb53cfa5b085bcd7972a921313d069e4c84a2")),
    ("smiley face.npy", Check::File(97_518_704, "28e6826d38a948e95b0776ef586bcf0258b400bff95301a1c9ebf66441c62ab0")),
    ("tree.npy", Check::File(113_461_344, "174eb2ffd87834defa8a503509e0dee330a3b10c81537d35f2af3736b94e7279")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Silent;
    use flate2::{Compression, write::GzEncoder};

    #[test]
    fn the_balanced_split_is_taken_out_of_nists_archive() {
        let folder = tempfile::tempdir().unwrap();
        let pack = |text: &str| {
            let mut out = GzEncoder::new(Vec::new(), Compression::fast());
            out.write_all(text.as_bytes()).unwrap();
            out.finish().unwrap()
        };
        let mut zip = zip::ZipWriter::new(File::create(folder.path().join(EMNIST_ARCHIVE)).unwrap());
        for name in emnist_files() {
            for split in ["balanced", "byclass"] {
                let entry = format!("gzip/{}", name.replace("balanced", split));
                zip.start_file(entry, zip::write::SimpleFileOptions::default()).unwrap();
                zip.write_all(&pack(&format!("{name} of {split}"))).unwrap();
            }
        }
        zip.finish().unwrap();
        unpack_emnist(folder.path()).unwrap();
        assert!(Set::Emnist.is_in(folder.path()) && emnist_is_whole(folder.path(), &Silent).unwrap());
        let name = "emnist-balanced-test-labels-idx1-ubyte.gz";
        let labels = folder.path().join(name);
        let whole = fs::read(&labels).unwrap();
        assert_eq!(whole, pack(&format!("{name} of balanced")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
        // One of them is cut off later.
        fs::write(&labels, &whole[..whole.len() - 4]).unwrap();
        assert!(!emnist_is_whole(folder.path(), &Silent).unwrap());
    }
}
