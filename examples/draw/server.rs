//! HTTP on the loopback: who may ask, how much and for how long; what is asked goes to the [`Queue`].

use super::{
    api::{self, Kind, MOST_BYTES, Refusal, Task},
    models::{Menu, examples},
    queue::{Queue, ending},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::{convert::Infallible, io, net, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// Connections at once; more wait outside.
const CONNECTIONS: usize = 512;
/// Requests that are read at once, and threads that understand them: what bounds the memory for bodies and pictures.
const READ_AT_ONCE: usize = 64;
const READERS: usize = 4;

/// The page, which is in the program.
const PAGE: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// Nothing that is not ours, nothing inline, nowhere else to go. What the page makes itself are `blob:` and `data:` images.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What all connections share.
pub struct Server {
    pub menu: Arc<Menu>,
    pub queue: Arc<Queue>,
    /// The port that it listens at.
    pub port: u16,
    /// How long a request may take to arrive.
    pub patience: Duration,
    reading: Semaphore,
}

type Answer = Response<Full<Bytes>>;

impl Server {
    pub fn new(menu: Menu, queue: Arc<Queue>, port: u16, patience: Duration) -> Self {
        Server { menu: Arc::new(menu), queue, port, patience, reading: Semaphore::new(READ_AT_ONCE) }
    }

    /// Serves until `end` comes or is dropped.
    pub fn serve(self, listener: net::TcpListener, end: oneshot::Receiver<()>) -> io::Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(READERS).build()?;
        listener.set_nonblocking(true)?;
        let server = Arc::new(self);
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            let accepting = tokio::spawn(async move {
                loop {
                    let permit = room.clone().acquire_owned().await.expect("it is never closed");
                    // A connection that failed, or no file descriptor left for it: others may go on.
                    let Ok((stream, _)) = listener.accept().await else {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    };
                    tokio::spawn(server.clone().converse(stream, permit));
                }
            });
            let _ = end.await;
            accepting.abort();
            // Whoever waits is told by the queue; that is given a moment to arrive.
            sleep(Duration::from_millis(50)).await;
            Ok(())
        })
    }

    /// One connection.
    async fn converse(self: Arc<Self>, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let patience = self.patience;
        let answer = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(64 << 10);
        // A client that breaks off is no one's fault.
        let _ = http.serve_connection(TokioIo::new(stream), answer).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let head = request.method() == Method::HEAD;
        let mut answer = self.route(request).await.unwrap_or_else(|refusal| {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut answer = json_of(status, refusal.to_json());
            if status == StatusCode::SERVICE_UNAVAILABLE {
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            answer
        });
        if head {
            *answer.body_mut() = Full::default();
        }
        for (name, value) in [
            ("content-security-policy", POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        self.check_origin(&request)?;
        let path = request.uri().path().to_owned();
        let kind = path.strip_prefix("/api/").and_then(Kind::named);
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        match (&path[..], kind) {
            (_, Some(kind)) if request.method() == Method::POST => {
                check_type(&request)?;
                self.ask(kind, request.into_body()).await
            }
            (_, Some(_)) => Err(Refusal::new(405, format!("{path} takes POST with JSON: GET /api describes it"))),
            ("/api", _) if reads => Ok(json_of(StatusCode::OK, api::description().to_string())),
            ("/api/models", _) if reads => {
                let models = self.blocking(|menu| menu.entries()).await?;
                let models = models.map_err(|e| Refusal::new(500, e.to_string()))?;
                let models: Vec<_> = models.iter().map(|model| &**model).collect();
                Ok(json_of(StatusCode::OK, json!({ "version": api::VERSION, "models": models }).to_string()))
            }
            ("/api/examples", _) if reads => {
                let sets = self.blocking(|_| examples()).await?;
                Ok(json_of(StatusCode::OK, json!({ "version": api::VERSION, "sets": sets }).to_string()))
            }
            _ => match PAGE.iter().find(|(name, ..)| *name == path) {
                Some((_, kind, text)) if reads => Ok(plain(StatusCode::OK, kind, *text)),
                Some(_) => Err(Refusal::new(405, "the page is there to be read: use GET")),
                None => Err(Refusal::new(404, "there is nothing here: see / or GET /api")),
            },
        }
    }

    /// Only this machine's own pages and programs: a page of another site, or a name of the network that leads here, is refused.
    fn check_origin(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        let port = self.port;
        let ours = |name: &str| {
            ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
                name.strip_prefix(host).is_some_and(|rest| rest == format!(":{port}") || port == 80 && rest.is_empty())
            })
        };
        let headers = request.headers();
        let all = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("")).collect::<Vec<_>>();
        match all(header::HOST)[..] {
            [host] if ours(host) && request.uri().authority().is_none_or(|name| ours(name.as_str())) => {}
            _ => return Err(Refusal::new(403, format!("ask for this page as http://127.0.0.1:{port}"))),
        }
        let local = |origin: &&str| origin.strip_prefix("http://").is_some_and(ours);
        if !all(header::ORIGIN).iter().all(local) {
            return Err(Refusal::new(403, "pages of other sites may not ask"));
        }
        if all(header::HeaderName::from_static("sec-fetch-site")).contains(&"cross-site")
            && request.method() == Method::POST
        {
            return Err(Refusal::new(403, "pages of other sites may not ask"));
        }
        Ok(())
    }

    /// Reads a request, waits for its turn and for its answer.
    async fn ask(&self, kind: Kind, body: Incoming) -> Result<Answer, Refusal> {
        let permit = self.reading.acquire().await.expect("it is never closed");
        let late = |_| Refusal::new(408, format!("the request did not arrive within {:?}", self.patience));
        let body = timeout(self.patience, whole(body)).await.map_err(late)??;
        let task = self
            .blocking(move |menu| {
                let models = menu.entries().map_err(|e| Refusal::new(500, e.to_string()))?;
                Task::parse(kind, &body, &models)
            })
            .await??;
        drop(permit);
        let (answer, _waiting) = self.queue.push(task)?;
        let body = answer.await.unwrap_or_else(|_| Err(ending()))?;
        Ok(json_of(StatusCode::OK, body))
    }

    /// Work that would keep others waiting, on a thread of its own.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Menu) -> T + Send + 'static) -> Result<T, Refusal> {
        let menu = self.menu.clone();
        spawn_blocking(move || work(&menu)).await.map_err(|_| Refusal::new(500, "the request could not be read"))
    }
}

/// The bytes of a body, if they are not too many. What is too much is read and dropped, so that the sender hears why.
async fn whole(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    const READ: usize = 16 * MOST_BYTES;
    let (mut bytes, mut length) = (vec![], 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::bad("the request broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= MOST_BYTES {
            bytes.extend_from_slice(&data);
        } else if length > READ {
            break;
        } else {
            bytes = vec![];
        }
    }
    match length {
        0..=MOST_BYTES => Ok(bytes),
        _ => Err(Refusal::new(413, format!("the request has more than {MOST_BYTES} bytes: send a smaller image"))),
    }
}

/// A page of another site can send forms and text, but not JSON, without being asked first.
fn check_type(request: &Request<Incoming>) -> Result<(), Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(415, "the body must be JSON: send it with Content-Type: application/json"))
}

/// JSON and the end of its line, for terminals.
fn json_of(status: StatusCode, text: String) -> Answer {
    plain(status, "application/json", text + "\n")
}

fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
