use super::*;
use serde_json::json;

/// A folder with a file of every program.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
    fs::create_dir(folder.path().join("deeper")).unwrap();
    let entry = |train: &str, test: &str, bound: f64, refine: u32| {
        json!({ "train": train, "learned_from": "mnist", "placement": "warp", "model": "dood", "test": test, "runs": 1, "images": 60,
                "bound": bound, "std": null, "standard_error": 1.25, "protocol": { "particles": 20, "ends": "sampled", "refine": refine } })
    };
    write(
        "deeper/table.json",
        json!({ "format": "dood-transfer", "version": 1, "command": "transfer --out <table> | x",
                "checkpoints": [{ "path": "runs/a", "sha256": "0123456789abcdef", "learned_from": "mnist", "updates": 7 }],
                "cells": [{ "seed": 3 }],
                "summary": [entry("mnist (a)", "mnist", 7094.04, 0), entry("mnist (a)", "kmnist", -12345.6, 0), entry("mnist (a)", "mnist", 7200.0, 100)] }),
    );
    let estimate = json!({ "mean": 12.5, "standard_error": 0.5 });
    write(
        "single.json",
        json!({ "elbo": estimate, "bound": estimate, "log_likelihood": estimate, "strokes": { "mean": 2.0 }, "checkpoint": "m", "data": "mnist",
                "images": 5, "images_in_split": 10, "particles": 3, "seed": 0, "all_ends": false, "refine": 0 }),
    );
    let share = json!({ "right": 15, "of": 20, "share": 0.75, "low": 0.53, "high": 0.89 });
    write(
        "known.json",
        json!({ "format": "dood-one-shot", "version": 1, "command": "one_shot",
                "methods": [{ "method": "reference", "command": "one_shot of air",
                              "model": { "checkpoint": "o", "sha256": "fedcba9876543210", "variant": "air", "seed": 5 } },
                            { "method": "pixels" }],
                "summary": [{ "method": "reference", "overall": share, "per_run": [share], "seconds": 30.0 },
                            { "method": "pixels", "overall": share, "per_run": [share], "seconds": 30.0 }] }),
    );
    write(
        "strokes.json",
        json!({ "format": "dood-cluster", "version": 1, "command": "cluster", "checkpoint": "c", "sha256": "aa", "seed": 1, "data": "mnist",
                "strokes": 50, "clusters": [{ "k": 8, "silhouette": 0.2345 }] }),
    );
    write(
        "latents.json",
        json!({ "format": "dood-latents", "version": 1, "command": "latents", "checkpoint": "l", "sha256": "bb", "seed": 2, "data": "kmnist",
                "learned_from": "mnist", "accuracy": share, "best": { "accuracy": 0.8 }, "published": 0.478,
                "protocol": { "updates": 10, "rate": 1e-5 } }),
    );
    write(
        "frechet.json",
        json!({ "format": "dood-frechet", "version": 1, "command": "frechet", "checkpoint": "f", "sha256": "cc", "seed": 2, "data": "mnist:/some/where",
                "learned_from": "mnist", "generated": { "mean": 1.5, "std": 0.25 }, "test_images": 0.125,
                "exemplars": { "recognised": share, "diversity": 0.9 }, "classifier": { "accuracy": share } }),
    );
    write("drawings.json", json!({ "format": "dood-drawings", "version": 1 }));
    write("later.json", json!({ "format": "dood-cluster", "version": 2 }));
    fs::write(folder.path().join("damaged.json"), "{").unwrap();
    fs::write(folder.path().join("strokes.svg"), "<svg xmlns=\"http://www.w3.org/2000/svg\"/>").unwrap();
    fs::write(folder.path().join("deeper/table-strokes.png"), [1, 2, 3]).unwrap();
    folder
}

#[test]
fn every_number_stands_beside_the_published_one_with_how_it_was_measured() {
    let folder = folder();
    let report = Report::read(folder.path(), "A & B <c>".into()).unwrap();
    assert_eq!((report.files(), report.left_out().len()), (6, 1));
    let html = report.html();
    crate::figures::assert_well_formed_html(&html);
    assert!(html.contains("<h1>A &amp; B &lt;c&gt;</h1>"));
    for row in [
        // Measured, published, and nobody's.
        "<tr class=\"ours\"><td>mnist (a), 20 particles, 60 images</td><td>7,094.0 ± 1.2</td><td>–</td><td>−12,345.6 ± 1.2</td>",
        "<tr class=\"ours\"><td>mnist (a), 20 particles, refined by 100 updates, 60 images</td><td>7,200.0 ± 1.2</td><td>–</td><td>–</td>",
        "<tr class=\"published\"><td>mnist, published</td><td>7,094.0 ± 57.9</td><td>4,413.9 ± 233.9</td><td>−2,859.4 ± 492.4</td>",
        "<tr class=\"missing\"><td>kmnist</td><td>not measured</td><td>–</td>",
        "<td>reference, air (known)</td><td>75.0 %</td><td>53.0 % to 89.0 %</td><td>15 of 20</td><td>1 of 20</td><td>30</td><td>14.5 %</td>",
        "<td>pixels (known)</td><td>75.0 %</td><td>53.0 % to 89.0 %</td><td>15 of 20</td><td>1 of 20</td><td>30</td><td>21.7 %</td>",
        "<td>reference, air (known)</td><td><code>one_shot of air</code></td><td>5</td><td><code>o</code></td>",
        "<td>strokes</td><td>mnist</td><td>50</td><td>8</td><td>0.234</td>",
        "<td>latents</td><td>mnist</td><td>kmnist</td><td>10 updates at 0.00001</td><td>75.0 % (53.0 % to 89.0 %)</td><td>80.0 %</td><td>47.8 %</td>",
        "<td>frechet</td><td>mnist</td><td>mnist</td><td>drawn from nothing</td><td>1.500 ± 0.250</td>",
        "<td>single</td><td>mnist</td><td>5 of 10</td><td>3</td><td>12.5 ± 0.5</td><td>12.5 ± 0.5</td><td>2.00</td>",
    ] {
        assert!(html.contains(row), "{row} is not in\n{html}");
    }
    // Commands, seeds and digests.
    assert!(html.contains("<code>transfer --out &lt;table&gt; | x</code></td><td>3</td><td><code>runs/a</code></td><td title=\"0123456789abcdef\"><code>0123456789ab</code>"));
    assert!(html.contains("<td>5</td><td><code>o</code></td><td title=\"fedcba9876543210\">"));
    // Pictures are in the page, and nothing is fetched.
    assert!(html.contains("src=\"data:image/png;base64,AQID\"") && html.contains("data:image/svg+xml;base64,"));
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("<script"));
    assert!(html.contains("damaged.json") && !html.contains("later.json"));
    assert_eq!(html.matches("Nothing of it is in the folder").count(), 0);

    let markdown = report.markdown(folder.path());
    assert!(
        markdown.contains("| **mnist (a), 20 particles, 60 images** | 7,094.0 ± 1.2 | – | −12,345.6 ± 1.2 |"),
        "{markdown}"
    );
    assert!(markdown.contains("](strokes.svg)") && markdown.contains("](deeper/table-strokes.png)"));
    assert!(report.markdown(&folder.path().join("deeper")).contains("](../strokes.svg)"));
    assert!(markdown.contains("`transfer --out <table> \\| x`"));
}

#[test]
fn what_is_not_there_is_said_and_a_folder_without_anything_is_refused() {
    let folder = folder();
    for name in ["known", "strokes", "latents", "frechet", "single", "damaged"] {
        fs::remove_file(folder.path().join(name).with_extension("json")).unwrap();
    }
    let report = Report::read(folder.path(), "x".into()).unwrap();
    let html = report.html();
    assert_eq!(html.matches("Nothing of it is in the folder").count(), 5);
    assert!(html.contains("<code>one_shot --runs OMNIGLOT --checkpoint MODEL --out FOLDER/one_shot</code>"));
    assert!(html.contains("<tr class=\"missing\"><td>a model of this library</td><td>not measured</td>"));
    let (ours, missing) = report.counts();
    assert!(ours == 2 && missing > 25, "{ours} {missing}");
    let empty = tempfile::tempdir().unwrap();
    let error = Report::read(empty.path(), "x".into()).unwrap_err().to_string();
    assert!(error.contains("has no JSON file of transfer"), "{error}");
    assert!(Report::read(&empty.path().join("nowhere"), "x".into()).is_err());
}
