//! A headless Chromium, driven by its chromedriver: the little of WebDriver and of the DevTools that the tests need.

use crate::common::{
    page::{Reply, request, send},
    programs::{Running, command, until},
    skipped,
};
use serde_json::{Value, json};
use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// A browser with one page.
pub struct Browser {
    port: u16,
    session: String,
    _driver: Running,
}

/// A program in the PATH.
fn found(names: &[&str]) -> Option<PathBuf> {
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

impl Browser {
    /// Starts one; none, and a line that says so, where it is not installed. With `DOOD_REQUIRE_BROWSER=1` that is a failure.
    pub fn start(wide: u32, high: u32) -> Option<Browser> {
        let programs = found(&["chromedriver"]).zip(found(&["chromium", "chromium-browser", "google-chrome"]));
        let Some((driver, chromium)) = programs else {
            let why = "tests of the page in a browser, because chromium and chromedriver are not installed";
            assert!(env::var_os("DOOD_REQUIRE_BROWSER").is_none_or(|v| v != "1"), "{why}");
            skipped(why);
            return None;
        };
        let mut command = command(driver);
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = Running(command.spawn().unwrap());
        let mut said = BufReader::new(driver.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = said.find_map(|line| {
            let rest = line.split("started successfully on port ").nth(1)?;
            rest.trim_end_matches('.').parse().ok()
        });
        let port = port.expect("chromedriver says its port");
        // It blocks once nobody reads what it says.
        thread::spawn(move || said.for_each(drop));
        let mut browser = Browser { port, session: String::new(), _driver: driver };
        let size = format!("--window-size={wide},{high}");
        // Without a sandbox, as it cannot be had in every container; the only page that it opens is ours.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", &size];
        let options = json!({ "args": arguments, "binary": chromium });
        let wanted = json!({ "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" } });
        let value = browser.ask("POST", "/session", Some(json!({ "capabilities": { "alwaysMatch": wanted } })));
        browser.session = format!("/session/{}", value["sessionId"].as_str().expect("a session"));
        Some(browser)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let body = body.map_or(String::new(), |body| body.to_string());
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json", self.port);
        let reply: Reply = send(self.port, &request(&head, body.as_bytes())).expect("chromedriver answers");
        let value = reply.json()["value"].take();
        assert_eq!(reply.status, 200, "{method} {path} {body}: {value}");
        value
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", &format!("{}{path}", self.session), Some(body))
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    pub fn reload(&self) {
        self.post("/refresh", json!({}));
    }

    /// What a function body returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true, and returns it.
    #[track_caller]
    pub fn wait(&self, what: &str, expression: &str) -> Value {
        let script = format!("return ({expression});");
        let began = Instant::now();
        loop {
            let value = self.run(&script);
            if value != Value::Null && value != Value::Bool(false) && value != json!(0) && value != json!("") {
                return value;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "waited in vain for {what}: {expression}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn text(&self, id: &str) -> String {
        let text = self.run(&format!("return document.getElementById('{id}').textContent"));
        text.as_str().unwrap().into()
    }

    fn find(&self, selector: &str) -> String {
        let found = self.post("/element", json!({ "using": "css selector", "value": selector }));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().into()
    }

    /// Clicks as a user does: what is hidden, covered or disabled cannot be.
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.post(&format!("/element/{element}/click"), json!({}));
    }

    /// Types into an element; files are named to an input of files so.
    pub fn keys(&self, selector: &str, keys: &str) {
        let element = self.find(selector);
        self.post(&format!("/element/{element}/value"), json!({ "text": keys }));
    }

    fn act(&self, actions: Value) {
        self.post("/actions", json!({ "actions": actions }));
    }

    /// Presses keys, one after the other, with those of `held` down.
    pub fn press(&self, held: &[char], keys: &str) {
        let down = |key: char| json!({ "type": "keyDown", "value": key });
        let up = |key: char| json!({ "type": "keyUp", "value": key });
        let mut actions: Vec<Value> = held.iter().map(|&key| down(key)).collect();
        actions.extend(keys.chars().flat_map(|key| [down(key), up(key)]));
        actions.extend(held.iter().map(|&key| up(key)));
        self.act(json!([{ "type": "key", "id": "keys", "actions": actions }]));
    }

    /// Draws on an element with the mouse, in parts of its size.
    pub fn draw(&self, selector: &str, points: &[[f64; 2]]) {
        let script = format!(
            "const element = document.querySelector('{selector}'); element.scrollIntoView({{ block: 'center' }}); \
             const box = element.getBoundingClientRect(); return [box.left, box.top, box.width, box.height];"
        );
        let area: Vec<f64> = serde_json::from_value(self.run(&script)).unwrap();
        let at = |[x, y]: [f64; 2]| (area[0] + x * area[2], area[1] + y * area[3]);
        let go = |duration: u32, point: [f64; 2]| {
            let (x, y) = at(point);
            json!({ "type": "pointerMove", "duration": duration, "x": x.round(), "y": y.round() })
        };
        let mut actions = vec![go(0, points[0]), json!({ "type": "pointerDown", "button": 0 })];
        actions.extend(points[1..].iter().map(|&point| go(10, point)));
        actions.push(json!({ "type": "pointerUp", "button": 0 }));
        let kind = json!({ "pointerType": "mouse" });
        self.act(json!([{ "type": "pointer", "id": "mouse", "parameters": kind, "actions": actions }]));
    }

    /// A command of the DevTools.
    #[track_caller]
    pub fn devtools(&self, name: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": name, "params": parameters }))
    }

    /// A picture of the whole page.
    pub fn screenshot(&self) -> Vec<u8> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let shot = self.devtools("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// What was written to the log `browser` or `performance` since it was last asked.
    pub fn log(&self, kind: &str) -> Vec<Value> {
        self.post("/se/log", json!({ "type": kind })).as_array().unwrap().clone()
    }

    /// Lets downloads arrive in a folder.
    pub fn download_to(&self, folder: &Path) {
        self.devtools("Browser.setDownloadBehavior", json!({ "behavior": "allow", "downloadPath": folder }));
    }

    /// How the page is to look: `light` or `dark`, and so wide.
    pub fn look(&self, scheme: &str, wide: u32) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
        let size = json!({ "width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": wide < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", size);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session; chromedriver is killed.
        let head = format!("DELETE {} HTTP/1.1\r\nHost: 127.0.0.1:{}", self.session, self.port);
        let _ = send(self.port, &request(&head, b""));
    }
}

/// A file, once all of it was downloaded.
pub fn downloaded(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    until(name, || std::fs::read(&path).ok().filter(|bytes| !bytes.is_empty()))
}
