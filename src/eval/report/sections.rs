//! What stands in a report, from the files of the programs.

use super::{Found, Kind, Made, Row, Section, Table};
use crate::{
    eval::{cluster, published},
    model::Variant,
    ops::Placement,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Which program wrote a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Transfer,
    OneShot,
    Cluster,
    Latents,
    Frechet,
    Evaluate,
}

/// `None` for a file of something else.
pub(super) fn format(value: &Value) -> Option<Format> {
    let version = value.get("version").and_then(Value::as_u64).unwrap_or(1);
    match value.get("format").and_then(Value::as_str) {
        _ if version != 1 => None,
        Some("dood-transfer") => Some(Format::Transfer),
        Some("dood-one-shot") => Some(Format::OneShot),
        Some("dood-cluster") => Some(Format::Cluster),
        Some("dood-latents") => Some(Format::Latents),
        Some("dood-frechet") => Some(Format::Frechet),
        Some(_) => None,
        // `evaluate` writes its numbers without a name.
        None => ["elbo", "bound", "log_likelihood", "checkpoint"]
            .iter()
            .all(|field| value.get(field).is_some())
            .then_some(Format::Evaluate),
    }
}

pub(super) fn all(found: &[Found]) -> Vec<Section> {
    let of = |wanted| found.iter().filter(|one| format(&one.value) == Some(wanted)).collect::<Vec<&Found>>();
    vec![
        transfer(&of(Format::Transfer)),
        evaluate(&of(Format::Evaluate)),
        one_shot(&of(Format::OneShot)),
        clusters(&of(Format::Cluster)),
        frechet(&of(Format::Frechet)),
        latents(&of(Format::Latents)),
    ]
}

// ---- Reading values that may not be there ----------------------------------------------------------------------------

fn text(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// What a set is called: of a public one the place is no matter.
fn data(value: &Value) -> String {
    let source = text(value, "/data");
    match source.split_once(':') {
        Some((set, _)) if SETS.contains(&set) => set.to_owned(),
        _ => source,
    }
}

fn number(value: &Value, path: &str) -> Option<f64> {
    value.pointer(path)?.as_f64()
}

fn list<'v>(value: &'v Value, path: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

/// With a comma between thousands.
fn nats(value: f64) -> String {
    let plain = format!("{:.1}", value.abs());
    let (whole, part) = plain.split_once('.').expect("one digit behind the point");
    let digits: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().map(|d| std::str::from_utf8(d).expect("digits")).collect();
    let sign = if value < 0.0 && plain != "0.0" { "−" } else { "" };
    if value.is_finite() { format!("{sign}{}.{part}", digits.join(",")) } else { "not finite".into() }
}

fn with(mean: Option<f64>, spread: Option<f64>, show: fn(f64) -> String) -> String {
    match (mean, spread) {
        (Some(mean), Some(spread)) => format!("{} ± {}", show(mean), show(spread)),
        (Some(mean), None) => show(mean),
        (None, _) => "–".into(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn three(value: f64) -> String {
    format!("{value:.3}")
}

fn ours(cells: Vec<String>) -> Row {
    Row { kind: Kind::Ours, cells }
}

fn paper(cells: Vec<String>) -> Row {
    Row { kind: Kind::Published, cells }
}

/// A row with nothing in it but its name.
fn missing(name: String, width: usize) -> Row {
    let mut cells = vec![name, "not measured".to_owned()];
    cells.resize(width, "–".into());
    Row { kind: Kind::Missing, cells }
}

fn head(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// How the one model of a file was measured.
fn made(one: &Found, what: String) -> Made {
    let checkpoint = text(&one.value, "/checkpoint");
    let digest = text(&one.value, "/sha256");
    Made { what, command: text(&one.value, "/command"), seed: text(&one.value, "/seed"), checkpoint, digest }
}

// ---- Transfer --------------------------------------------------------------------------------------------------------

const SETS: [&str; 5] = ["mnist", "emnist", "kmnist", "quickdraw", "omniglot"];

/// The models of the published tables and what they are called here.
const FAMILIES: [(Variant, Option<Placement>, &str); 6] = [
    (Variant::Dood, Some(Placement::Warp), "DooD"),
    (Variant::Dood, Some(Placement::Points), "DooD, control points placed"),
    (Variant::Dair, None, "Difference-AIR"),
    (Variant::Eg, None, "DooD-EG (no guidance)"),
    (Variant::Sp, None, "DooD-SP (fixed prior)"),
    (Variant::Dr, None, "DooD-δR (no renderer)"),
];

/// A row of a table of `transfer`, on all its sets.
struct Line {
    family: usize,
    learned_from: String,
    label: String,
    cells: Vec<(String, String)>,
}

fn transfer(files: &[&Found]) -> Section {
    let lines: Vec<Line> = files.iter().flat_map(|one| lines(one)).collect();
    let tested: BTreeSet<&str> = lines.iter().flat_map(|line| line.cells.iter().map(|(set, _)| set.as_str())).collect();
    let mut columns = SETS.to_vec();
    columns.extend(tested.iter().filter(|set| !SETS.contains(set)));
    let known = |(f, (variant, placement, name)): (usize, &(Variant, Option<Placement>, &str))| {
        let is_of =
            |row: &&published::Published| row.model == *variant && (placement.is_none() || row.placement == *placement);
        let mut trained: Vec<String> = SETS.iter().map(|&set| set.to_owned()).collect();
        let others = published::all().iter().filter(is_of).map(|row| row.train.to_owned());
        let measured = lines.iter().filter(|line| line.family == f).map(|line| line.learned_from.clone());
        others.chain(measured).for_each(|set| {
            if !trained.contains(&set) {
                trained.push(set);
            }
        });
        let mut rows = vec![];
        for train in trained {
            let before = rows.len();
            for line in lines.iter().filter(|line| line.family == f && line.learned_from == train) {
                let cell = |set: &&str| {
                    line.cells.iter().find(|(test, _)| test == set).map_or("–".into(), |(_, cell)| cell.clone())
                };
                rows.push(ours(std::iter::once(line.label.clone()).chain(columns.iter().map(cell)).collect()));
            }
            let row =
                |set: &&str| published::all().iter().filter(is_of).find(|row| row.train == train && row.test == *set);
            if rows.len() == before {
                rows.push(missing(train.clone(), columns.len() + 1));
            }
            if columns.iter().any(|set| row(set).is_some()) {
                let cell = |set: &&str| {
                    row(set).map_or("–".into(), |row| {
                        let one = if row.samples == 1 { " (1 particle)" } else { "" };
                        with(Some(row.mean), row.std, nats) + one
                    })
                };
                rows.push(paper(
                    std::iter::once(format!("{train}, published")).chain(columns.iter().map(cell)).collect(),
                ));
            }
        }
        let mut head = vec!["learned from".to_owned()];
        head.extend(columns.iter().map(|&set| set.to_owned()));
        Table { caption: (*name).into(), head, rows }
    };
    let mut figures = vec![];
    for one in files {
        figures.extend(one.figure(&[".svg", ".png"], &format!("{}: the table with drawings", one.name())));
        figures.extend(
            one.figure(&["-strokes.svg", "-strokes.png"], &format!("{}: strokes per image (Fig. 3 b–d)", one.name())),
        );
    }
    let of_checkpoint = |one: &Found| {
        let seeds: BTreeSet<String> = list(&one.value, "/cells").map(|cell| text(cell, "/seed")).collect();
        let seed = seeds.into_iter().collect::<Vec<_>>().join(", ");
        let made = |checkpoint: &Value| Made {
            what: format!(
                "{}: {} after {} updates",
                one.name(),
                text(checkpoint, "/learned_from"),
                text(checkpoint, "/updates")
            ),
            command: text(&one.value, "/command"),
            seed: seed.clone(),
            checkpoint: text(checkpoint, "/path"),
            digest: text(checkpoint, "/sha256"),
        };
        list(&one.value, "/checkpoints").map(made).collect::<Vec<Made>>()
    };
    Section {
        title: "Drawing what was not learned from (Fig. 4, Fig. 3)",
        about: "Importance-weighted bounds on log p(x) in nats per image, more is better: models that learned from one set (rows) on the \
                test images of another (columns). Behind ± is the standard error over images, of several runs the standard deviation over \
                them. Published: 200 particles, all test images, 500,001 updates, mean ± population standard deviation over seeds. Rows with \
                fewer particles are lower than they would be with 200; refined rows are inference at test time and not the published protocol.",
        tables: FAMILIES.iter().enumerate().map(known).collect(),
        figures,
        made: files.iter().flat_map(|one| of_checkpoint(one)).collect(),
        missing: files
            .is_empty()
            .then(|| "transfer --checkpoint MODEL --data mnist --data kmnist … --out FOLDER/transfer".into()),
    }
}

/// The rows of a file, each protocol on a line of its own.
fn lines(one: &Found) -> Vec<Line> {
    let mut lines: Vec<Line> = vec![];
    for entry in list(&one.value, "/summary") {
        let train = text(entry, "/train");
        // Of files of an older version only the label tells it.
        let learned_from = match text(entry, "/learned_from") {
            none if none.is_empty() => train.split(' ').next().unwrap_or_default().to_owned(),
            learned_from => learned_from,
        };
        let of = |value: &str, name: &str| text(entry, &format!("/protocol/{value}")) == name;
        let mut words = vec![train.clone(), format!("{} particles", text(entry, "/protocol/particles"))];
        words.extend((!of("refine", "0")).then(|| format!("refined by {} updates", text(entry, "/protocol/refine"))));
        words.extend(of("ends", "all").then(|| "all ends".into()));
        words.extend(number(entry, "/runs").filter(|&runs| runs > 1.0).map(|runs| format!("{runs} runs")));
        words.push(format!("{} images", text(entry, "/images")));
        let (variant, label) = (text(entry, "/model"), words.join(", "));
        let points = text(entry, "/placement") == "points" || train.split(' ').any(|word| word == "points");
        let is_it = |(model, placement, _): &(Variant, Option<Placement>, &str)| {
            model.to_string() == variant && placement.is_none_or(|placement| (placement == Placement::Points) == points)
        };
        let Some(family) = FAMILIES.iter().position(is_it) else { continue };
        let spread = number(entry, "/std").or(number(entry, "/standard_error"));
        let cell = (text(entry, "/test"), with(number(entry, "/bound"), spread, nats));
        match lines.iter_mut().find(|line| line.label == label) {
            Some(line) => line.cells.push(cell),
            None => lines.push(Line { family, learned_from, label, cells: vec![cell] }),
        }
    }
    lines
}

// ---- Single measurements ---------------------------------------------------------------------------------------------

fn evaluate(files: &[&Found]) -> Section {
    let row = |one: &&Found| {
        let value = &one.value;
        let estimate = |name: &str| {
            with(number(value, &format!("/{name}/mean")), number(value, &format!("/{name}/standard_error")), nats)
        };
        let strokes = number(value, "/strokes/mean").map_or("–".into(), |strokes| format!("{strokes:.2}"));
        let refine =
            number(value, "/refine").filter(|&refine| refine > 0.0).map(|n| format!(", refined by {n} updates"));
        let ends = (value.pointer("/all_ends") == Some(&Value::Bool(true))).then(|| ", all ends".to_owned());
        ours(vec![
            [one.name(), refine.unwrap_or_default(), ends.unwrap_or_default()].concat(),
            data(value),
            format!("{} of {}", text(value, "/images"), text(value, "/images_in_split")),
            text(value, "/particles"),
            estimate("bound"),
            estimate("elbo"),
            strokes,
        ])
    };
    let table = Table {
        caption: "Measured by evaluate".into(),
        head: head(&["file", "images of", "images", "particles", "IWAE bound", "ELBO", "strokes"]),
        rows: files.iter().map(row).collect(),
    };
    Section {
        title: "Single measurements",
        about: "Bounds in nats per image with standard errors of the mean over images.",
        tables: if files.is_empty() { vec![] } else { vec![table] },
        made: files.iter().map(|one| made(one, one.name())).collect(),
        missing: files.is_empty().then(|| "evaluate --checkpoint MODEL --data mnist --out FOLDER/NAME.json".into()),
        ..Section::default()
    }
}

// ---- One-shot classification -----------------------------------------------------------------------------------------

fn one_shot(files: &[&Found]) -> Section {
    let (mut rows, mut ways, mut figures) = (vec![], vec![], vec![]);
    for one in files {
        for summary in list(&one.value, "/summary") {
            let name = text(summary, "/method");
            let said = list(&one.value, "/methods").find(|said| text(said, "/method") == name);
            let empty = Value::Null;
            let model = said.and_then(|said| said.get("model")).unwrap_or(&empty);
            let part = |path: &str| number(summary, path).map_or("–".into(), percent);
            let runs = list(summary, "/per_run").count();
            let seconds =
                number(summary, "/seconds").map_or("–".into(), |s| format!("{:.0}", s / runs.max(1) as f64));
            let variant = text(model, "/variant");
            let published = match (name.as_str(), variant.as_str()) {
                ("reference", "air") => Some(published::ONE_SHOT[0].1),
                (_, "" | "dood") => {
                    published::ONE_SHOT_BASELINES.iter().find(|(method, _)| *method == name).map(|(_, share)| *share)
                }
                _ => None,
            };
            let what = match variant.as_str() {
                "" | "dood" => format!("{name} ({})", one.name()),
                _ => format!("{name}, {variant} ({})", one.name()),
            };
            rows.push(ours(vec![
                what.clone(),
                part("/overall/share"),
                format!("{} to {}", part("/overall/low"), part("/overall/high")),
                format!("{} of {}", text(summary, "/overall/right"), text(summary, "/overall/of")),
                format!("{runs} of 20"),
                seconds,
                published.map_or("–".into(), percent),
            ]));
            // Where a file was gone on with, methods have commands of their own.
            let own = said.map(|said| text(said, "/command")).filter(|command| !command.is_empty());
            ways.push(Made {
                what,
                command: own.unwrap_or_else(|| text(&one.value, "/command")),
                seed: text(model, "/seed"),
                checkpoint: text(model, "/checkpoint"),
                digest: text(model, "/sha256"),
            });
            figures.extend(
                one.figure(&[&format!("-{name}.png")], &format!("{name}: queries, and below what they were taken for")),
            );
        }
    }
    let width = 7;
    if !files
        .iter()
        .any(|one| list(&one.value, "/methods").any(|said| said.get("model").is_some_and(|model| !model.is_null())))
    {
        rows.push(missing("a model of this library".into(), width));
    }
    rows.extend(published::ONE_SHOT.iter().map(|(name, share)| {
        let mut cells = vec![format!("{name}, published")];
        cells.resize(width - 1, "–".into());
        cells.push(percent(*share));
        paper(cells)
    }));
    Section {
        title: "One-shot classification (Table 1)",
        about: "Which of twenty characters of an alphabet, each seen once, is a new drawing? The official runs of Omniglot; intervals are \
                Wilson's of 95 %. VHE learned with augmented data, GNS and BPL with recorded strokes and compare both ways.",
        tables: vec![Table {
            caption: "Right decisions".into(),
            head: head(&["method", "right", "95 % interval", "decisions", "runs", "seconds per run", "published"]),
            rows,
        }],
        figures,
        made: ways,
        missing: files.is_empty().then(|| "one_shot --runs OMNIGLOT --checkpoint MODEL --out FOLDER/one_shot".into()),
    }
}

// ---- Clusters --------------------------------------------------------------------------------------------------------

fn clusters(files: &[&Found]) -> Section {
    let (mut rows, mut figures) = (vec![], vec![]);
    for one in files {
        for clusters in list(&one.value, "/clusters") {
            let silhouette = number(clusters, "/silhouette").map_or("–".into(), three);
            let (k, strokes) = (text(clusters, "/k"), text(&one.value, "/strokes"));
            rows.push(ours(vec![one.name(), data(&one.value), strokes, k, silhouette]));
        }
        figures.extend(one.figure(&[".svg"], &format!("{}: a map of strokes (Fig. 5)", one.name())));
        figures.extend(
            one.figure(&[".png"], &format!("{}: clusters, each with its centre and strokes of it", one.name())),
        );
    }
    if files.is_empty() {
        rows.push(missing("a model of this library".into(), 5));
    }
    for (k, dood, air) in cluster::PUBLISHED {
        for (name, value) in [("DooD, published", dood), ("Difference-AIR, published", air)] {
            rows.push(paper(vec![name.into(), "mnist".into(), "10,000".into(), k.to_string(), format!("{value:.2}")]));
        }
    }
    Section {
        title: "Groups of strokes (Fig. 5)",
        about: "k-means of the strokes that training images are drawn with, and how well the groups stand apart: the silhouette coefficient \
                is 1 where they lie far apart and 0 where they touch.",
        tables: vec![Table {
            caption: "Silhouettes".into(),
            head: head(&["file", "images of", "strokes", "clusters", "silhouette"]),
            rows,
        }],
        figures,
        made: files.iter().map(|one| made(one, one.name())).collect(),
        missing: files.is_empty().then(|| "cluster --checkpoint MODEL --data mnist --out FOLDER/cluster".into()),
    }
}

// ---- Fréchet distances -----------------------------------------------------------------------------------------------

fn frechet(files: &[&Found]) -> Section {
    let (mut distances, mut exemplars, mut figures) = (vec![], vec![], vec![]);
    for one in files {
        let value = &one.value;
        let (set, learned) = (data(value), text(value, "/learned_from"));
        let mut row = |what: &str, distance: Option<f64>, std: Option<f64>| {
            distances.push(ours(vec![
                one.name(),
                learned.clone(),
                set.clone(),
                what.into(),
                with(distance, std, three),
            ]));
        };
        row("drawn from nothing", number(value, "/generated/mean"), number(value, "/generated/std"));
        row("test images", number(value, "/test_images"), None);
        if value.get("exemplars").is_some_and(|exemplars| !exemplars.is_null()) {
            exemplars.push(ours(vec![
                one.name(),
                learned,
                set,
                number(value, "/exemplars/recognised/share").map_or("–".into(), percent),
                number(value, "/exemplars/diversity").map_or("–".into(), three),
                number(value, "/classifier/accuracy/share").map_or("–".into(), percent),
            ]));
        }
        figures.extend(one.figure(&[".png", ".svg"], &format!("{}: exemplars of every class", one.name())));
        figures.extend(one.figure(&["-drawn.png"], &format!("{}: drawings from nothing", one.name())));
    }
    if files.is_empty() {
        distances.push(missing("a model of this library".into(), 5));
    }
    let mut tables = vec![Table {
        caption: "Fréchet distances from training images, on features of a classifier of this library".into(),
        head: head(&["file", "model learned from", "images of", "what", "distance"]),
        rows: distances,
    }];
    if !exemplars.is_empty() {
        tables.push(Table {
            caption:
                "Exemplars: recognised by the classifier, and their spread relative to that of images of the class"
                    .into(),
            head: head(&[
                "file",
                "model learned from",
                "images of",
                "recognised",
                "diversity",
                "classifier on test images",
            ]),
            rows: exemplars,
        });
    }
    let of_paper =
        published::FID.iter().map(|(set, mean, std)| paper(vec![(*set).into(), with(Some(*mean), *std, three)]));
    tables.push(Table {
        caption: "Published, on the class probabilities of Inception-v3: cannot be compared with the distances above"
            .into(),
        head: head(&["set", "distance"]),
        rows: of_paper.collect(),
    });
    Section {
        title: "Drawings from nothing, and exemplars (Fig. 6, Fig. 7)",
        about: "Distances between normal distributions that were fitted to features; less is nearer. The features are those of a classifier \
                that this library has trained, so they are no “FID”. That of test images says what can be reached.",
        tables,
        figures,
        made: files.iter().map(|one| made(one, one.name())).collect(),
        missing: files
            .is_empty()
            .then(|| "frechet --checkpoint MODEL --classifier CLASSIFIER --data mnist --out FOLDER/frechet".into()),
    }
}

// ---- Latents ---------------------------------------------------------------------------------------------------------

fn latents(files: &[&Found]) -> Section {
    let (mut rows, mut figures) = (vec![], vec![]);
    for one in files {
        let value = &one.value;
        let part = |path: &str| number(value, path).map_or("–".into(), percent);
        rows.push(ours(vec![
            one.name(),
            text(value, "/learned_from"),
            data(value),
            format!("{} updates at {}", text(value, "/protocol/updates"), text(value, "/protocol/rate")),
            format!("{} ({} to {})", part("/accuracy/share"), part("/accuracy/low"), part("/accuracy/high")),
            part("/best/accuracy"),
            part("/published"),
        ]));
        figures.extend(one.figure(&[".svg", ".png"], &format!("{}: what is taken for what", one.name())));
        figures.extend(one.figure(&["-learning.svg"], &format!("{}: learning", one.name())));
    }
    if files.is_empty() {
        rows.push(missing("a model of this library".into(), 7));
    }
    let (sets, of_paper) = published::all_latents();
    let mut names = vec!["learned from".to_owned()];
    names.extend(sets.iter().map(|&set| set.to_owned()));
    let row = |(name, train, shares): (&str, &str, [f64; 4])| {
        paper(std::iter::once(format!("{name}, {train}")).chain(shares.iter().map(|&share| percent(share))).collect())
    };
    Section {
        title: "Classes from strokes (not in the paper)",
        about: "A single linear layer on where the strokes of one drawing lie and which they are. Published is the best test accuracy of all \
                epochs, with gradients that were never cleared.",
        tables: vec![
            Table {
                caption: "Test images whose class is found".into(),
                head: head(&[
                    "file",
                    "model learned from",
                    "images of",
                    "training",
                    "in the end",
                    "best epoch",
                    "published",
                ]),
                rows,
            },
            Table { caption: "Published".into(), head: names, rows: of_paper.map(row).collect() },
        ],
        figures,
        made: files.iter().map(|one| made(one, one.name())).collect(),
        missing: files.is_empty().then(|| "latents --checkpoint MODEL --data mnist --out FOLDER/latents".into()),
    }
}
