//! The page to draw in, in a real browser: a headless Chromium draws with the mouse, and sees what a user would.
//!
//! Skipped with a line where there is no chromium with its chromedriver; required with `DOOD_REQUIRE_BROWSER=1`. Screenshots are left in
//! `target/tmp/page`, or in `DOOD_SCREENSHOTS`.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod webdriver;

use common::{
    page::{Page, model},
    programs::program,
    skipped,
};
use dood::{eval::DrawingFile, model::Variant};
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
};
use webdriver::{Browser, downloaded};

const SEVEN: [[f64; 2]; 9] = [
    [0.25, 0.25],
    [0.4, 0.24],
    [0.55, 0.23],
    [0.72, 0.24],
    [0.68, 0.35],
    [0.6, 0.5],
    [0.54, 0.62],
    [0.5, 0.72],
    [0.46, 0.82],
];
const BAR: [[f64; 2]; 3] = [[0.3, 0.25], [0.5, 0.24], [0.7, 0.25]];

fn ring() -> Vec<[f64; 2]> {
    let turn = |i: u32| f64::from(i) * std::f64::consts::TAU / 20.0;
    (0..=20).map(|i| [0.5 + 0.2 * turn(i).sin(), 0.5 - 0.28 * turn(i).cos()]).collect()
}

/// The program with the model that ships, and another one to change to; none, and a line that says so, in a package, which has no models.
fn page() -> Option<Page> {
    if !Path::new("models/mnist.safetensors").exists() {
        skipped("tests of the page in a browser, because no model ships with a package");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("tiny.safetensors"), Variant::Dood);
    let mut command = program("draw");
    command.args(["--checkpoint", "mnist", "--checkpoint", "tiny.safetensors", "--device", "cpu", "--port", "0"]);
    command.current_dir(folder.path());
    Some(Page::start(command).keeping(folder))
}

fn screenshots() -> PathBuf {
    let folder =
        env::var_os("DOOD_SCREENSHOTS").map_or(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page"), PathBuf::from);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What the page would keep over a reload.
fn state(browser: &Browser) -> Value {
    serde_json::from_str(browser.run("return localStorage.getItem('dood')").as_str().expect("a saved state")).unwrap()
}

/// What was measured since the last time, in milliseconds.
fn measured(browser: &Browser, name: &str) -> f64 {
    let entries = format!("performance.getEntriesByName('{name}', 'measure')");
    let time = browser.wait(name, &format!("{entries}.at(-1)?.duration"));
    browser.run(&format!("performance.clearMeasures('{name}')"));
    time.as_f64().unwrap()
}

#[test]
fn a_user_draws_a_seven_and_does_everything_that_the_page_offers() {
    let Some(browser) = Browser::start(1280, 1000) else { return };
    let Some(page) = page() else { return };
    let home = format!("http://127.0.0.1:{}/", page.port);
    browser.open(&home);
    browser.wait("the models", "document.querySelectorAll('#model option').length >= 2");
    browser.wait("the examples", "document.querySelectorAll('#examples button').length >= 10");
    assert!(browser.text("about").contains("learned from mnist"), "{}", browser.text("about"));

    // Draws, and sees strokes come.
    browser.draw("#pad", &SEVEN);
    let (first, whole) = (measured(&browser, "first-stroke"), measured(&browser, "redrawn"));
    assert!(0.0 < first && first < whole, "{first} {whole}");
    let count: usize = browser.text("count").parse().unwrap();
    let strokes = "document.querySelectorAll('#strokes .stroke').length";
    assert!(count >= 1 && browser.run(&format!("return {strokes}")) == count);
    assert!(browser.text("likelihood").ends_with("nats") && browser.text("residual").ends_with('%'));

    // Steps, and the window of a stroke.
    browser.run(
        "const steps = document.getElementById('steps'); steps.value = 1; steps.dispatchEvent(new Event('input'))",
    );
    assert_eq!(browser.run(&format!("return {strokes}")), 1);
    browser.run("const steps = document.getElementById('steps'); steps.value = steps.max; steps.dispatchEvent(new Event('input'))");
    browser.run("document.querySelector('#legend button').focus()");
    assert_eq!(browser.run("return document.querySelectorAll('#strokes .window').length"), 1);
    assert_eq!(browser.run("return document.querySelectorAll('#strokes .stroke.faded').length"), count - 1);
    browser.run("document.activeElement.blur()");

    // What it shows, and what it lets be downloaded, is what the program answers to the same request.
    let ink = json!({ "lines": state(&browser)["now"]["lines"] });
    let fit = page.get("/api/models").json()["models"][0]["fit"].clone();
    let asked = json!({ "version": 1, "model": "mnist", "ink": ink, "fit": fit, "particles": 4, "seed": 0 });
    let answer = page.ask("redraw", &asked).json();
    let folder = tempfile::tempdir().unwrap();
    browser.download_to(folder.path());
    for id in ["json", "svg", "png"] {
        browser.click(&format!("#{id}"));
    }
    let file = DrawingFile::parse(&downloaded(folder.path(), "drawing.json"), "drawing.json").unwrap();
    assert_eq!(file, DrawingFile::parse(answer["drawings"].to_string().as_bytes(), "the answer").unwrap());
    let svg = String::from_utf8(downloaded(folder.path(), "drawing.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"), "{svg}");
    let attribute = |name: &str| -> Vec<String> {
        let parts = svg.split("<path ").skip(1);
        parts.map(|part| part.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap().into()).collect()
    };
    let paths: Vec<String> = svg.split(" d=\"").skip(1).map(|part| part.split('"').next().unwrap().into()).collect();
    assert_eq!(json!(paths.len()), json!(count));
    assert_eq!(json!(paths), answer["pictures"][0]["paths"]);
    for (width, stroke) in attribute("stroke-width").iter().zip(&file.drawings[0].strokes) {
        assert!((width.parse::<f64>().unwrap() - 400.0 * stroke.width.unwrap()).abs() < 1e-9);
    }
    let png = image::load_from_memory(&downloaded(folder.path(), "drawing.png")).unwrap().into_rgb8();
    let coloured = png.pixels().filter(|pixel| pixel.0.iter().any(|&v| v < 200)).count();
    assert!(png.dimensions() == (800, 800) && (5_000..300_000).contains(&coloured), "{coloured}");

    // Undoes and redoes, with buttons and with keys.
    browser.click("#undo");
    browser.wait("an empty page", "document.getElementById('count').textContent === '–'");
    browser.press(&['\u{e009}'], "y");
    browser.wait("the seven again", "document.getElementById('count').textContent !== '–'");

    // Another sample.
    let before = state(&browser)["redraw"]["seed"].clone();
    browser.click("#again");
    browser.wait("another drawing", &format!("JSON.parse(localStorage.getItem('dood')).redraw.seed !== {before}"));

    let before = state(&browser)["redraw"]["drawings"]["drawings"][0]["log_likelihood"].as_f64().unwrap();
    browser.click("#refine");
    browser.wait("what comes of it", "document.getElementById('status').textContent !== 'Refining …'");
    assert!(state(&browser)["redraw"]["drawings"]["drawings"][0]["log_likelihood"].as_f64().unwrap() >= before);

    // Completes, varies, imagines; goes on from an idea.
    for kind in ["imagine", "vary", "complete"] {
        browser.click(&format!("#{kind}"));
        measured(&browser, kind);
        assert_eq!(browser.run("return document.querySelectorAll('#grid .tile path').length >= 8"), true, "{kind}");
        assert_eq!(browser.run("return document.querySelectorAll('#grid .tile').length"), 8);
    }
    let lines = |browser: &Browser| state(browser)["now"]["lines"].as_array().unwrap().len();
    let begun = state(&browser)["ideas"]["answer"]["pictures"][0]["begun"].as_u64().unwrap();
    let drawn = state(&browser)["ideas"]["answer"]["drawings"]["drawings"][0]["strokes"].as_array().unwrap().len();
    browser.click("#grid .tile");
    let further = drawn - begun as usize;
    assert_eq!(lines(&browser), 1 + further);
    if further > 0 {
        browser.click("#undo");
    }
    assert_eq!(lines(&browser), 1);

    // A reload changes nothing, and what had not been answered is asked again.
    browser.wait("the drawing", "!JSON.parse(localStorage.getItem('dood')).pending");
    let kept =
        |browser: &Browser| (state(browser)["now"].clone(), state(browser)["ideas"].clone(), browser.text("count"));
    let before = kept(&browser);
    browser.reload();
    browser.wait("the page again", "document.querySelectorAll('#grid .tile').length === 8");
    assert_eq!(kept(&browser), before);

    // What was saved by something else, or not wholly, does no harm.
    for damaged in ["'{'", "'{\"version\":1,\"now\":{\"lines\":[]},\"redraw\":{\"pictures\":7}}'"] {
        let kept = browser.run("return localStorage.getItem('dood')");
        browser.run(&format!("localStorage.setItem('dood', {damaged})"));
        browser.reload();
        browser.wait("the page again", "document.querySelectorAll('#examples button').length >= 10");
        browser.wait(
            "an empty page",
            "document.getElementById('undo').disabled && document.getElementById('count').textContent === '–'",
        );
        browser.run(&format!("localStorage.setItem('dood', {})", json!(kept.as_str().unwrap())));
        browser.reload();
        browser.wait("what was there", "document.getElementById('count').textContent !== '–'");
    }

    // Another model draws, if need be after a reload: here nothing was answered before it.
    browser.run("window.fetch = () => new Promise(() => {})");
    browser.click("#model option[value=tiny]");
    browser.reload();
    browser.wait("the other model", "JSON.parse(localStorage.getItem('dood')).redraw.model === 'tiny'");
    browser.click("#model option[value=mnist]");
    browser.wait("the first model", "JSON.parse(localStorage.getItem('dood')).redraw.model === 'mnist'");

    // An image of the strip, a file, and keys alone.
    browser.click("#examples button");
    browser.wait("a digit that ships", "JSON.parse(localStorage.getItem('dood')).now.image");
    browser.wait("its drawing", "document.getElementById('count').textContent !== '–'");
    browser.keys("#file", folder.path().join("drawing.svg").to_str().unwrap());
    browser.keys("#file", folder.path().join("drawing.png").to_str().unwrap());
    browser.wait("the file", "document.getElementById('count').textContent !== '–'");
    // Dropped and pasted, as far as a script may do that.
    for (kind, target) in [("drop", "document.getElementById('frame')"), ("paste", "window")] {
        browser.click("#clear");
        browser.run(&format!("const kind = '{kind}', target = {target}; {HAND_OVER}"));
        browser.wait(kind, "JSON.parse(localStorage.getItem('dood')).now.image && document.getElementById('count').textContent !== '–'");
    }
    browser.devtools(
        "Browser.grantPermissions",
        json!({ "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] }),
    );
    browser.click("#copy");
    browser.wait("a copy", "document.getElementById('status').textContent === 'Copied.'");
    browser.click("#clear");
    browser.run("document.getElementById('pad').focus()");
    browser.press(&[], "\u{e012}\u{e012} \u{e014}\u{e014}\u{e014}\u{e014}\u{e015}\u{e015} ");
    browser.wait("a line drawn by keys", "JSON.parse(localStorage.getItem('dood')).now.lines.length === 1");

    // Symbols that were seen once.
    browser.click("#clear");
    for symbol in [&SEVEN[..], &ring()] {
        browser.draw("#pad", symbol);
        browser.click("#keep");
    }
    let again = SEVEN.map(|[x, y]| [0.95 * x + 0.03, 0.9 * y + 0.05]);
    browser.draw("#pad", &again);
    browser.click("#which");
    browser.wait("an answer", "document.querySelector('#symbols .best')");
    assert_eq!(browser.run("return document.querySelector('#symbols li').className"), "best");

    looked_at(&browser);
    nothing_from_elsewhere(&browser, &home);
    page.unharmed();
}

/// Gives the page an example's image as a file from elsewhere.
const HAND_OVER: &str = "
    const bytes = Uint8Array.from(atob(document.querySelector('#examples img').src.split(',')[1]), c => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], 'digit.png', { type: 'image/png' }));
    target.dispatchEvent(kind === 'drop' ? new DragEvent('drop', { dataTransfer: data, cancelable: true })
        : new ClipboardEvent('paste', { clipboardData: data }));";

/// Screenshots, and what can be said of looks without eyes: nothing is cut off, all text can be read, everything has a name.
fn looked_at(browser: &Browser) {
    browser.run("document.getElementById('status').textContent = ''");
    for scheme in ["light", "dark"] {
        for wide in [1280, 360] {
            browser.look(scheme, wide);
            browser.run("window.scrollTo(0, 0); document.activeElement.blur()");
            browser.wait(
                "another look",
                &format!("matchMedia('(prefers-color-scheme: {scheme})').matches && innerWidth === {wide}"),
            );
            assert_eq!(browser.run("return document.documentElement.scrollWidth"), wide, "it scrolls sideways");
            let faint = browser.run(CONTRAST);
            assert_eq!(faint, json!([]), "{scheme}, {wide}: text of too little contrast");
            fs::write(screenshots().join(format!("{scheme}-{wide}.png")), browser.screenshot()).unwrap();
        }
    }
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let controls = ["button", "slider", "checkbox", "combobox", "link", "application", "img"];
    let named = nodes.iter().filter(|node| controls.contains(&node["role"]["value"].as_str().unwrap_or("")));
    let nameless: Vec<&Value> =
        named.clone().filter(|node| node["name"]["value"].as_str().unwrap_or("").is_empty()).collect();
    assert!(named.count() > 30 && nameless.is_empty(), "without a name: {nameless:?}");
}

/// Text whose contrast with what is behind it is below what WCAG 2 AA asks for; what is disabled is not held to it.
const CONTRAST: &str = "
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, style = getComputedStyle(element);
        if (!walker.currentNode.data.trim() || !element.getClientRects().length || element.closest(':disabled')) continue;
        const [a, b] = [light(parse(style.color)), light(behind(element))].sort((a, b) => b - a);
        const contrast = (a + 0.05) / (b + 0.05), large = parseFloat(style.fontSize) >= 24;
        if (contrast < (large ? 3 : 4.5)) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
    }
    return faint;";

/// No error on the console, and no request that leaves this machine.
fn nothing_from_elsewhere(browser: &Browser, home: &str) {
    let said: Vec<Value> = browser.log("browser");
    assert!(said.is_empty(), "the console says {said:?}");
    let mut requests = 0;
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        if message["message"]["method"] == "Network.requestWillBeSent" {
            let url = message["message"]["params"]["request"]["url"].as_str().unwrap();
            requests += 1;
            let ours = [home, "data:", "blob:"].iter().any(|start| url.starts_with(start));
            assert!(ours, "{url} was asked for");
        }
    }
    assert!(requests > 20, "{requests} requests");
}

/// The picture of the README, `docs/page.png`: `scripts/pictures.sh` runs it. The page while a seven is gone on with, by day and by night.
#[test]
#[ignore = "makes a picture"]
fn picture() {
    use image::{GenericImage, RgbImage, imageops};
    let Some(browser) = Browser::start(1280, 1000) else { return };
    let Some(page) = page() else { return };
    browser.look("light", 1180);
    browser.open(&format!("http://127.0.0.1:{}/", page.port));
    browser.wait("the examples", "document.querySelectorAll('#examples button').length >= 10");
    // As people draw.
    browser.click("#model option[value=mnist]");
    browser.draw("#pad", &SEVEN);
    measured(&browser, "redrawn");
    browser.click("#vary");
    measured(&browser, "vary");
    browser.run("document.getElementById('status').textContent = ''; document.activeElement.blur()");
    let shot = |scheme: &str, wide: u32| {
        browser.look(scheme, wide);
        browser.wait(
            "another look",
            &format!("matchMedia('(prefers-color-scheme: {scheme})').matches && innerWidth === {wide}"),
        );
        image::load_from_memory(&browser.screenshot()).unwrap().into_rgb8()
    };
    let (day, night) = (shot("light", 1180), shot("dark", 360));
    let high = 830;
    let (left, right, gap) = (690, 290, 14);
    let by_day = imageops::resize(&day, left, left * day.height() / day.width(), imageops::FilterType::Lanczos3);
    let by_night =
        imageops::resize(&night, right, right * night.height() / night.width(), imageops::FilterType::Lanczos3);
    let mut both = RgbImage::from_pixel(left + gap + right, high, image::Rgb([255, 255, 255]));
    for (part, at) in [(by_day, 0), (by_night, left + gap)] {
        let part = imageops::crop_imm(&part, 0, 0, part.width(), part.height().min(high)).to_image();
        both.copy_from(&part, at, 0).unwrap();
    }
    let mut bytes = vec![];
    let best = image::codecs::png::PngEncoder::new_with_quality(
        &mut bytes,
        image::codecs::png::CompressionType::Best,
        image::codecs::png::FilterType::Adaptive,
    );
    both.write_with_encoder(best).unwrap();
    fs::write("docs/page.png", bytes).unwrap();
}

/// How long a user waits: `scripts/page_latency.sh` runs it. Medians, from lifting the pen or clicking to what is on the screen.
#[test]
#[ignore = "a measurement"]
fn latencies() {
    const TIMES: usize = 25;
    let Some(browser) = Browser::start(1280, 1000) else { return };
    let Some(page) = page() else { return };
    browser.open(&format!("http://127.0.0.1:{}/", page.port));
    browser.wait("the models", "document.querySelectorAll('#model option').length >= 2");
    let report = |name: &str, mut times: Vec<f64>, limit: f64| {
        times.sort_by(f64::total_cmp);
        let [median, worst] = [times[times.len() / 2], times[times.len() - 1]];
        println!(
            "{name:<40} median {median:6.0} ms  worst {worst:6.0} ms  (to be at most {limit:.0} ms in the median)"
        );
    };
    let mut times = [vec![], vec![]];
    for i in 0..TIMES {
        let part = i as f64 / TIMES as f64;
        browser.draw("#pad", &SEVEN.map(|[x, y]| [x * (1.0 - 0.2 * part) + 0.1 * part, y]));
        times[0].push(measured(&browser, "first-stroke"));
        times[1].push(measured(&browser, "redrawn"));
        browser.click("#clear");
    }
    let [first, whole] = times;
    report("pen up to the first stroke on screen", first, 150.0);
    report("pen up to the whole redrawing", whole, 500.0);
    browser.draw("#pad", &BAR);
    for (kind, limit) in [("complete", 1500.0), ("vary", 1500.0), ("imagine", 1500.0)] {
        let times = (0..TIMES).map(|_| {
            browser.click(&format!("#{kind}"));
            measured(&browser, kind)
        });
        report(&format!("{kind}: 8 drawings on screen"), times.collect(), limit);
    }
}
