//! The page to draw in, as a program among others: its protocol, who may ask, what it refuses, and how it bears load.
//! `tests/browser` opens it in a browser.
#![cfg(unix)]

mod common;

use base64::{Engine, prelude::BASE64_STANDARD};
use common::{
    page::{Page, Reply, model, post, request, send},
    png,
    programs::until,
};
use dood::{
    eval::DrawingFile,
    model::Variant,
    rng::{Rng, Stream},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// How long an answer may take, on a very busy machine.
const IN_TIME: Duration = Duration::from_secs(60);

/// A seven.
fn ink() -> Value {
    json!({"lines": [{"points": [[0.3, 0.2], [0.7, 0.2], [0.45, 0.8]], "width": 0.08}]})
}

fn picture(side: u32) -> String {
    BASE64_STANDARD.encode(png(side, side / 2))
}

/// Asks for something that is possible.
#[track_caller]
fn ask(page: &Page, kind: &str, fields: Value) -> Value {
    let reply = page.ask(kind, &with_version(fields));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

fn with_version(mut fields: Value) -> Value {
    fields["version"] = 1.into();
    fields
}

/// The drawings of an answer, as a file of drawings is read.
#[track_caller]
fn drawings(answer: &Value) -> DrawingFile {
    DrawingFile::parse(answer["drawings"].to_string().as_bytes(), "the answer").unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

// ---- What is answered ---------------------------------------------------------------------------------------------

#[test]
fn every_kind_of_request_is_answered_with_drawings_that_other_programs_read() {
    let page = Page::open(&[]);
    for source in [json!({"ink": ink(), "fit": 0.7}), json!({"ink": ink()}), json!({"image": picture(40)})] {
        let answer = ask(&page, "redraw", source);
        let file = drawings(&answer);
        let (drawing, picture) = (&file.drawings[0], &answer["pictures"][0]);
        assert!(drawing.log_likelihood.unwrap().is_finite() && picture["residual"].as_f64().unwrap() >= 0.0);
        let n = drawing.strokes.len();
        assert_eq!(picture["canvases"].as_array().unwrap().len(), n.max(1));
        assert_eq!(picture["paths"].as_array().unwrap().len(), n);
        assert_eq!(bytes(&picture["canvases"][0]).len(), 16 * 16);
        assert!(bytes(&answer["seen"]["pixels"]).iter().any(|&v| v > 128));
    }
    // The best of more drawings is at least as good.
    let likelihood = |particles: u32| {
        let answer = ask(&page, "redraw", json!({"ink": ink(), "particles": particles}));
        drawings(&answer).drawings[0].log_likelihood.unwrap()
    };
    assert!(likelihood(64) >= likelihood(1));
    let refined = ask(&page, "redraw", json!({"ink": ink(), "particles": 1, "refine": 3}));
    assert!(drawings(&refined).drawings[0].log_likelihood.unwrap().is_finite());

    let begun = ask(&page, "complete", json!({"ink": ink(), "count": 3, "begin": 1, "strokes": 2}));
    let file = drawings(&begun);
    assert_eq!(file.drawings.len(), 3);
    for (drawing, picture) in file.drawings.iter().zip(begun["pictures"].as_array().unwrap()) {
        let first = picture["begun"].as_u64().unwrap() as usize;
        assert!(first <= 1 && drawing.strokes.len() <= first + 2);
        assert_eq!(drawing.strokes[..first], file.drawings[0].strokes[..first], "all begin alike");
    }
    let begun = serde_json::to_value(&file.drawings[0]).unwrap();
    let further = ask(&page, "complete", json!({"drawing": begun, "count": 2, "strokes": 4, "temperature": 1}));
    for drawing in drawings(&further).drawings {
        assert!(drawing.strokes.len() >= file.drawings[0].strokes.len());
        assert_eq!(drawing.strokes[0].points, file.drawings[0].strokes[0].points);
    }

    for token in ["paper", "reference"] {
        let varied = ask(&page, "vary", json!({"ink": ink(), "count": 4, "token": token}));
        assert_eq!((drawings(&varied).drawings.len(), varied["pictures"].as_array().unwrap().len()), (4, 4));
    }
    assert_eq!(drawings(&ask(&page, "imagine", json!({"count": 5}))).drawings.len(), 5);

    let line = json!({"lines": [{"points": [[0.1, 0.9], [0.9, 0.9]], "width": 0.1}]});
    let scored =
        ask(&page, "score", json!({"ink": ink(), "known": [{"ink": line}, {"ink": ink()}, {"image": picture(20)}]}));
    let scores = scored["scores"].as_array().unwrap();
    let shares: f64 = scores.iter().map(|score| score["share"].as_f64().unwrap()).sum();
    assert!(scores.len() == 3 && (shares - 1.0).abs() < 1e-9);
}

#[test]
fn models_without_curves_draw_too_and_say_what_they_cannot() {
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("air.safetensors"), Variant::Air);
    model(&folder.path().join("eg.safetensors"), Variant::Eg);
    model(&folder.path().join("tiny.safetensors"), Variant::Dood);
    let page = Page::in_folder(folder.path(), &["--checkpoint", "air.safetensors", "--checkpoint", "eg.safetensors"]);
    let answer = ask(&page, "redraw", json!({"model": "air", "ink": ink()}));
    assert_eq!((&answer["pictures"][0]["paths"], &answer["model"]), (&json!([]), &json!("air")));
    assert!(!answer["pictures"][0]["canvases"].as_array().unwrap().is_empty());
    ask(&page, "complete", json!({"model": "air", "ink": ink(), "count": 2}));
    ask(&page, "imagine", json!({"model": "air", "count": 2}));
    ask(&page, "redraw", json!({"model": "eg", "ink": ink()}));
    refused(&page.ask("vary", &json!({"version": 1, "model": "air", "ink": ink()})), 400, "draws without curves");
    refused(&page.ask("imagine", &json!({"version": 1, "model": "eg"})), 400, "eg");
    let models = page.get("/api/models").json();
    let known = models["models"].as_array().unwrap().iter().map(|model| (model["id"].clone(), model["curves"].clone()));
    let known: Vec<_> = known.take(3).collect();
    assert_eq!(json!(known), json!([["tiny", true], ["air", false], ["eg", true]]));
}

#[test]
fn the_same_request_has_the_same_answer_and_another_seed_another_one() {
    let page = Page::open(&[]);
    let ask = |seed: u64| {
        let mut answer = ask(&page, "imagine", json!({"count": 3, "seed": seed}));
        answer["seconds"] = Value::Null;
        answer["seed"] = Value::Null;
        answer
    };
    assert_eq!(ask(3), ask(3));
    assert_ne!(ask(3), ask(4));
}

#[test]
fn ink_that_is_fitted_says_where_it_lies() {
    let page = Page::open(&[]);
    let answer = ask(&page, "redraw", json!({"ink": ink(), "fit": 0.7}));
    let place = &answer["seen"]["place"];
    let number = |value: &Value| value.as_f64().unwrap();
    let at = |x: f64, y: f64| {
        [0, 1]
            .map(|k| number(&place["scale"]) * [x, y][k] + number(&place["shift"][k]))
            .map(|v| (v * 16.0).round() as usize)
    };
    let pixels = bytes(&answer["seen"]["pixels"]);
    for [x, y] in [at(0.5, 0.2), at(0.575, 0.5), at(0.45, 0.8)] {
        assert!(pixels[y * 16 + x] > 100, "no ink at {x} {y}");
    }
}

#[test]
fn the_page_and_its_description_are_there_and_allow_nothing_from_elsewhere() {
    let page = Page::open(&[]);
    for (path, kind, part) in [
        ("/", "text/html", "<title>"),
        ("/style.css", "text/css", "prefers-color-scheme"),
        ("/page.js", "text/javascript", "/api/"),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/api", "application/json", "POST /api/redraw"),
        ("/api/models", "application/json", "\"tiny\""),
        ("/api/examples", "application/json", "\"sets\""),
    ] {
        let reply = page.get(path);
        assert!(reply.status == 200 && reply.text().contains(part), "{path}: {}", reply.text());
        assert!(reply.header("content-type").unwrap().starts_with(kind));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    // What a browser would fetch from elsewhere, or run without being asked.
    for path in ["/", "/style.css", "/page.js"] {
        let text = page.get(path).text();
        let text = text.replace("http://www.w3.org/2000/svg", "");
        for never in
            ["http://", "https://", "//cdn", "eval(", "innerHTML", "style=\"", "onclick=", "<script>", "@import"]
        {
            assert!(!text.contains(never), "{path} has {never}");
        }
    }
}

// ---- What is refused ----------------------------------------------------------------------------------------------

#[test]
fn what_cannot_be_done_is_refused_in_one_sentence_and_the_page_goes_on() {
    let page = Page::open(&["--patience", "1"]);
    let stroke = json!({"points": [[0.1, 0.1], [0.9, 0.9]]});
    let cut = BASE64_STANDARD.encode(&png(40, 20)[..80]);
    // A PNG whose head claims far more pixels than are allowed.
    let mut claims = png(40, 20);
    claims[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let mut sum = flate2::Crc::new();
    sum.update(&claims[12..29]);
    claims[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    let line = &ink()["lines"][0];
    let bodies: Vec<(&str, String, u16, &str)> = vec![
        ("redraw", "".into(), 400, "not JSON"),
        ("redraw", "{".into(), 400, "not JSON"),
        ("redraw", "[1]".into(), 400, "must be a JSON object"),
        ("redraw", "[".repeat(100_000), 400, "not JSON"),
        ("redraw", "{\"version\": 1, \"fit\": NaN}".into(), 400, "not JSON"),
        ("redraw", "{\"version\": 1, \"fit\": 1e999}".into(), 400, "not JSON"),
        ("redraw", json!({"ink": ink()}).to_string(), 400, "\"version\" must be 1"),
        ("redraw", json!({"version": 2, "ink": ink()}).to_string(), 400, "\"version\" must be 1"),
        ("redraw", json!({"version": 1}).to_string(), 400, "give what was drawn"),
        ("redraw", json!({"version": 1, "ink": ink(), "image": picture(9)}).to_string(), 400, "only one of"),
        ("redraw", json!({"version": 1, "ink": ink(), "inc": 1}).to_string(), 400, "has no field \"inc\""),
        ("imagine", json!({"version": 1, "ink": ink()}).to_string(), 400, "has no field \"ink\""),
        ("redraw", json!({"version": 1, "ink": 7}).to_string(), 400, "cannot be read"),
        ("redraw", json!({"version": 1, "ink": {"lines": []}}).to_string(), 400, "no lines"),
        ("redraw", json!({"version": 1, "ink": {"lines": vec![line; 10_000]}}).to_string(), 400, "10000 lines"),
        ("redraw", json!({"version": 1, "ink": ink(), "particles": 0}).to_string(), 400, "between 1 and 200"),
        ("redraw", json!({"version": 1, "ink": ink(), "particles": -1}).to_string(), 400, "cannot be read"),
        ("redraw", json!({"version": 1, "ink": ink(), "particles": 1e12}).to_string(), 400, "cannot be read"),
        ("redraw", json!({"version": 1, "ink": ink(), "strokes": 1_000_000}).to_string(), 400, "between 1 and 40"),
        ("redraw", json!({"version": 1, "ink": ink(), "fit": 7}).to_string(), 400, "\"fit\""),
        ("redraw", json!({"version": 1, "ink": ink(), "model": "../../etc/passwd"}).to_string(), 404, "no model"),
        (
            "redraw",
            json!({"version": 1, "ink": ink(), "model": "x".repeat(900_000)}).to_string(),
            404,
            "no model \"xxxx",
        ),
        (
            "redraw",
            json!({"version": 1, "ink": ink(), ("y".repeat(900_000)): 1}).to_string(),
            400,
            "has no field \"yyyy",
        ),
        ("redraw", json!({"version": 1, "image": "%%%"}).to_string(), 400, "not Base64"),
        ("redraw", json!({"version": 1, "image": ""}).to_string(), 400, "not a PNG"),
        ("redraw", json!({"version": 1, "image": "aGVsbG8="}).to_string(), 400, "not a PNG"),
        ("redraw", json!({"version": 1, "image": cut}).to_string(), 400, "cannot be decoded"),
        ("redraw", json!({"version": 1, "image": BASE64_STANDARD.encode(&claims)}).to_string(), 400, "65536x65536"),
        ("redraw", json!({"version": 1, "drawing": {"strokes": []}}).to_string(), 400, "0 strokes"),
        (
            "redraw",
            json!({"version": 1, "drawing": {"strokes": vec![&stroke; 10_000]}}).to_string(),
            400,
            "at most 1000",
        ),
        ("complete", json!({"version": 1, "drawing": {"strokes": [stroke]}}).to_string(), 400, "2 control points"),
        ("complete", json!({"version": 1, "ink": ink(), "temperature": "hot"}).to_string(), 400, "\"temperature\""),
        ("vary", json!({"version": 1, "ink": ink(), "token": "mine"}).to_string(), 400, "\"token\""),
        ("vary", json!({"version": 1, "ink": ink(), "count": 1000}).to_string(), 400, "between 1 and 64"),
        (
            "vary",
            json!({"version": 1, "ink": ink(), "count": 64, "particles": 100}).to_string(),
            400,
            "64 times 100 drawings are more than 1000",
        ),
        ("redraw", json!({"version": 1, "ink": ink(), "refine": 1000}).to_string(), 400, "\"refine\""),
        ("score", json!({"version": 1, "ink": ink()}).to_string(), 400, "\"known\""),
        ("score", json!({"version": 1, "ink": ink(), "known": [{}]}).to_string(), 400, "every entry"),
        ("redraw", " ".repeat((1 << 20) + 1), 413, "more than 1048576 bytes"),
        ("redraw", "x".repeat(4 << 20), 413, "more than 1048576 bytes"),
    ];
    for (kind, body, status, part) in bodies {
        let reply = page.send(&post(&format!("/api/{kind}"), page.port, body.as_bytes()));
        refused(&reply, status, part);
    }
    let (port, body) = (page.port, with_version(json!({"ink": ink()})).to_string());
    let asked = |head: &str| request(&format!("{head}\r\nContent-Type: application/json"), body.as_bytes());
    let host = format!("Host: 127.0.0.1:{port}");
    let heads: Vec<(Vec<u8>, u16, &str)> = vec![
        // Whoever is not at this machine, or comes from another page.
        (asked("POST /api/redraw HTTP/1.1\r\nHost: evil.example"), 403, "as http://127.0.0.1"),
        (asked(&format!("POST /api/redraw HTTP/1.1\r\nHost: evil.example:{port}")), 403, "as http://127.0.0.1"),
        (asked("POST /api/redraw HTTP/1.1\r\nHost: 127.0.0.1:1"), 403, "as http://127.0.0.1"),
        (asked(&format!("POST /api/redraw HTTP/1.1\r\n{host}\r\nHost: evil.example")), 403, "as http://127.0.0.1"),
        (asked("POST /api/redraw HTTP/1.0"), 403, "as http://127.0.0.1"),
        (asked(&format!("GET http://evil.example/ HTTP/1.1\r\n{host}")), 403, "as http://127.0.0.1"),
        (asked(&format!("POST /api/redraw HTTP/1.1\r\n{host}\r\nOrigin: https://evil.example")), 403, "other sites"),
        (asked(&format!("POST /api/redraw HTTP/1.1\r\n{host}\r\nOrigin: null")), 403, "other sites"),
        (
            asked(&format!("POST /api/redraw HTTP/1.1\r\n{host}\r\nOrigin: http://127.0.0.1:{port}.evil.example")),
            403,
            "other sites",
        ),
        (asked(&format!("GET / HTTP/1.1\r\n{host}\r\nOrigin: https://evil.example")), 403, "other sites"),
        // What a form of another page could send.
        (
            request(&format!("POST /api/redraw HTTP/1.1\r\n{host}\r\nContent-Type: text/plain"), body.as_bytes()),
            415,
            "JSON",
        ),
        (request(&format!("POST /api/redraw HTTP/1.1\r\n{host}"), body.as_bytes()), 415, "JSON"),
        // Paths that lead nowhere.
        (asked(&format!("GET /../../etc/passwd HTTP/1.1\r\n{host}")), 404, "nothing here"),
        (asked(&format!("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n{host}")), 404, "nothing here"),
        (asked(&format!("GET //etc/passwd HTTP/1.1\r\n{host}")), 404, "nothing here"),
        (asked(&format!("GET /api/redraw HTTP/1.1\r\n{host}")), 405, "POST"),
        (asked(&format!("DELETE / HTTP/1.1\r\n{host}")), 405, "GET"),
        (asked(&format!("POST /api/erase HTTP/1.1\r\n{host}")), 404, "nothing here"),
    ];
    for (bytes, status, part) in heads {
        refused(&page.send(&bytes), status, part);
    }
    // A body that does not come.
    let slow = format!(
        "POST /api/redraw HTTP/1.1\r\n{host}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    refused(&page.send(slow.as_bytes()), 408, "did not arrive within 1s");
    // A head that does not come: the connection is closed.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(IN_TIME)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: 127").unwrap();
    let mut rest = vec![];
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 2"));

    for name in ["localhost", "127.0.0.1"] {
        let own = format!("POST /api/redraw HTTP/1.1\r\nHost: {name}:{port}\r\nOrigin: http://{name}:{port}");
        assert_eq!(page.send(&asked(&own)).status, 200);
    }
}

#[track_caller]
fn refused(reply: &Reply, status: u16, part: &str) {
    let text = reply.text();
    assert!(reply.status == status && text.contains(&part.replace('"', "\\\"")), "{part}: {} {text}", reply.status);
    let said = reply.json();
    let sentence = said["error"].as_str().unwrap();
    assert!(said["version"] == 1 && sentence.len() < 300 && !sentence.contains('\n'), "{sentence}");
}

/// Requests that were valid until something happened to them.
struct Mutant<'a> {
    rng: Rng,
    drawn: usize,
    port: u16,
    valid: &'a [(&'static str, String)],
}

impl Mutant<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        self.rng.below(Stream(0), self.drawn, n.max(1))
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const VALUES: [&str; 16] = [
            "null",
            "-1",
            "0",
            "1e308",
            "1e999",
            "NaN",
            "18446744073709551616",
            "\"\"",
            "[]",
            "{}",
            "true",
            "0.5",
            "[[1,2],[3]]",
            "\"\\ud800\"",
            "\"\u{0}\"",
            "9999999",
        ];
        let at = self.below(bytes.len());
        match self.below(7) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << (at % 8)),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..(at + 1 + self.below(20)).min(bytes.len()))),
            3 => {
                let copy = bytes[at..(at + self.below(200)).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let junk: Vec<u8> = (0..1 + self.below(8)).map(|_| self.below(256) as u8).collect();
                bytes.splice(at..at, junk);
            }
            // A value becomes another one.
            _ => {
                let text = String::from_utf8_lossy(bytes).into_owned();
                let from: Vec<usize> = text.match_indices([':', ',', '[']).map(|(at, _)| at + 1).collect();
                if from.is_empty() {
                    return;
                }
                let from = from[self.below(from.len())];
                let to = text[from..].find([',', ']', '}']).map_or(text.len(), |n| from + n);
                *bytes = format!("{}{}{}", &text[..from], VALUES[self.below(VALUES.len())], &text[to..]).into_bytes();
            }
        }
    }

    /// A damaged body in a whole request, or a request that is damaged anywhere.
    fn request(&mut self) -> Vec<u8> {
        let (kind, body) = &self.valid[self.below(self.valid.len())];
        let mut body = body.clone().into_bytes();
        let whole = self.below(10) > 0;
        for _ in 0..1 + self.below(3) * usize::from(whole) {
            self.damage(&mut body);
        }
        let mut request = post(&format!("/api/{kind}"), self.port, &body);
        if !whole {
            self.damage(&mut request);
        }
        request
    }
}

#[test]
fn ten_thousand_damaged_requests_are_all_answered_and_do_no_harm() {
    const REQUESTS: usize = 10_000;
    const CLIENTS: usize = 32;
    let page = Page::open(&["--patience", "1"]);
    let stroke =
        json!({"points": [[0.1, 0.1], [0.5, 0.2], [0.7, 0.3], [0.9, 0.9]], "width": 0.02, "layout": [0, 0, 0.5, 0.1]});
    let valid: Vec<(&str, String)> = [
        ("redraw", json!({"ink": ink(), "fit": 0.7, "particles": 1, "seed": 5, "model": "tiny", "client": "a"})),
        ("redraw", json!({"image": picture(24), "invert": "auto", "fit": 0.5, "particles": 1})),
        ("redraw", json!({"drawing": {"strokes": [stroke, stroke], "canvas_slope": 0.5}, "particles": 1})),
        ("complete", json!({"ink": ink(), "count": 2, "begin": 1, "strokes": 1, "temperature": 0.5, "particles": 1})),
        ("complete", json!({"drawing": {"strokes": [stroke], "canvas_slope": 0.5}, "count": 1, "strokes": 1})),
        ("vary", json!({"ink": ink(), "count": 2, "token": "reference", "particles": 1})),
        ("imagine", json!({"count": 2, "strokes": 2, "temperature": "paper"})),
        ("score", json!({"ink": ink(), "known": [{"ink": ink()}, {"image": picture(12)}], "particles": 1})),
    ]
    .map(|(kind, fields)| (kind, with_version(fields).to_string()))
    .to_vec();
    let next = AtomicUsize::new(0);
    let counts = [const { AtomicUsize::new(0) }; 4];
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Relaxed);
                    if i >= REQUESTS {
                        return;
                    }
                    let mut mutant = Mutant { rng: Rng::new(17, i as u64), drawn: 0, port: page.port, valid: &valid };
                    let request = mutant.request();
                    let began = Instant::now();
                    let reply = send(page.port, &request);
                    assert!(began.elapsed() < IN_TIME, "{}", String::from_utf8_lossy(&request));
                    let at = match reply.map(|reply| reply.status) {
                        Some(200) => 0,
                        Some(400..500) => 1,
                        Some(503) => 2,
                        // A head that is not whole, after the time that it has.
                        None => 3,
                        Some(status) => panic!("{status}: {}", String::from_utf8_lossy(&request)),
                    };
                    counts[at].fetch_add(1, Relaxed);
                }
            });
        }
    });
    let [done, refused, busy, closed] = counts.map(|count| count.into_inner());
    println!("{REQUESTS} damaged requests: {done} answered, {refused} refused, {busy} busy, {closed} closed");
    assert!(done > 100 && refused > REQUESTS / 2 && closed < REQUESTS / 20, "{done} {refused} {busy} {closed}");
    ask(&page, "redraw", json!({"ink": ink()}));
    page.unharmed();
}

// ---- Load ---------------------------------------------------------------------------------------------------------

#[test]
fn two_hundred_clients_at_once_all_get_their_answers_in_bounded_memory() {
    let page = Page::open(&[]);
    ask(&page, "redraw", json!({"ink": ink()}));
    // Near the limit of a request's size.
    let noise = image::GrayImage::from_fn(850, 850, |x, y| image::Luma([(x * y * 7 + x * x * 13) as u8]));
    let mut large = std::io::Cursor::new(vec![]);
    noise.write_to(&mut large, image::ImageFormat::Bmp).unwrap();
    let large = with_version(json!({"image": BASE64_STANDARD.encode(&large.into_inner()[..]), "fit": 0.7})).to_string();
    assert!((900_000..1 << 20).contains(&large.len()), "{}", large.len());
    let before = page.memory();
    thread::scope(|scope| {
        let page = &page;
        let large = &large;
        for i in 0..200 {
            scope.spawn(move || {
                let small = with_version(json!({"ink": ink(), "seed": i, "count": 2})).to_string();
                let (kind, body) = match i % 4 {
                    0 => ("redraw", large.clone()),
                    1 => ("vary", small),
                    2 => ("complete", small),
                    _ => ("imagine", with_version(json!({"count": 2, "seed": i})).to_string()),
                };
                let reply = page.send(&post(&format!("/api/{kind}"), page.port, body.as_bytes()));
                assert_eq!(reply.status, 200, "{}", reply.text());
                let answer = reply.json();
                assert!(i % 4 == 0 || answer["seed"] == i, "the answer to another request");
            });
        }
    });
    let grown = page.peak_memory().saturating_sub(before);
    println!("200 clients: memory grew by {} MiB", grown >> 20);
    assert!(grown < 400 << 20, "{grown} bytes");
    page.unharmed();
}

/// Something that takes the tiny model a while.
fn long(client: &str) -> Value {
    json!({"version": 1, "ink": ink(), "count": 64, "strokes": 40, "client": client})
}

#[test]
fn a_newer_request_of_a_client_takes_the_place_of_its_older_one() {
    let page = &Page::open(&[]);
    let clients = ["a", "b", "c", "d", "e", "f"];
    thread::scope(|scope| {
        let older = clients.map(|client| scope.spawn(move || page.ask("complete", &long(client))));
        thread::sleep(Duration::from_millis(200));
        let newer = json!({"version": 1, "ink": ink()});
        let newer = clients.map(|client| {
            let mut body = newer.clone();
            body["client"] = client.into();
            scope.spawn(move || page.ask("redraw", &body))
        });
        for newer in newer {
            assert_eq!(newer.join().unwrap().status, 200);
        }
        let older = older.map(|older| older.join().unwrap());
        let given_up: Vec<&Reply> = older.iter().filter(|reply| reply.status == 409).collect();
        // The first may have been done before.
        assert!(given_up.len() >= 3, "{} of 6 were given up", given_up.len());
        given_up.iter().for_each(|reply| refused(reply, 409, "newer request"));
    });
}

#[test]
fn whoever_comes_to_a_full_line_is_told_to_come_again() {
    let page = Page::open(&["--queue", "2"]);
    thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|i| {
                let page = &page;
                scope.spawn(move || page.ask("complete", &long(&format!("client {i}"))))
            })
            .collect();
        let replies: Vec<Reply> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
        let busy: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 503).collect();
        assert!(replies.iter().all(|reply| [200, 503].contains(&reply.status)));
        assert!((1..=10).contains(&busy.len()), "{} of 12 are told so", busy.len());
        refused(busy[0], 503, "2 requests wait already");
        assert_eq!(busy[0].header("retry-after"), Some("1"));
    });
}

#[test]
fn work_for_whoever_has_left_is_given_up() {
    let page = Page::open(&["--queue", "30"]);
    let began = Instant::now();
    assert_eq!(page.ask("complete", &long("a")).status, 200);
    let once = began.elapsed();
    println!("a long request takes {once:?}");
    let left: Vec<TcpStream> = (0..20)
        .map(|i| {
            let mut stream = TcpStream::connect(("127.0.0.1", page.port)).unwrap();
            let body = long(&format!("client {i}")).to_string();
            stream.write_all(&post("/api/complete", page.port, body.as_bytes())).unwrap();
            stream
        })
        .collect();
    thread::sleep(Duration::from_millis(100));
    drop(left);
    let began = Instant::now();
    ask(&page, "redraw", json!({"ink": ink()}));
    assert!(began.elapsed() < 10 * once, "{:?} after 20 requests of {once:?} that nobody waits for", began.elapsed());
}

// ---- Beginning and ending -----------------------------------------------------------------------------------------

#[test]
fn a_taken_port_leads_to_the_next_and_ctrl_c_ends_the_page() {
    let mut first = Page::open(&[]);
    let second = Page::open(&["--port", &first.port.to_string()]);
    assert!(second.port > first.port && second.port <= first.port + 100);
    ask(&second, "redraw", json!({"ink": ink()}));
    first.program.signal(libc::SIGINT);
    assert!(first.program.end().success());
}

#[test]
fn a_page_that_was_killed_starts_again_with_nothing_to_repair() {
    let mut page = Page::open(&[]);
    let port = page.port;
    let names = |page: &Page| common::programs::names(&page.folder);
    let before = names(&page);
    thread::scope(|scope| {
        let asked = scope.spawn(move || send(port, &post("/api/complete", port, long("a").to_string().as_bytes())));
        thread::sleep(Duration::from_millis(50));
        page.program.0.kill().unwrap();
        page.program.0.wait().unwrap();
        assert!(asked.join().unwrap().is_none_or(|reply| reply.status == 200));
    });
    assert_eq!(names(&page), before, "a file was written");
    let page = until("the port to be free", || {
        let again = Page::in_folder(&page.folder, &["--port", &port.to_string()]);
        (again.port == port).then_some(again)
    });
    ask(&page, "redraw", json!({"ink": ink()}));
}
