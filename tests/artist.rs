//! A model that draws: off the tape and back, from nothing, on from where it stood, and as other hands would.

mod common;

use common::{lively, tiny};
use dood::{
    Device, Tensor,
    error::Error,
    eval::{Artist, Beginning, Best, DrawingFile, Drawn, MedianPen, Token, gallery, paint},
    measure::Protocol,
    model::{Config, Heat, Model, Start, Variant},
    observer::Silent,
    ops::Placement,
    rng::{Rng, Stream},
};

const PEN: MedianPen = MedianPen { sigma: 0.02, slope: 0.6, canvas_slope: 0.5 };
/// Models whose prior can draw by itself.
const DRAW: [Variant; 5] = [Variant::Dood, Variant::Sp, Variant::Dr, Variant::Air, Variant::Dair];

fn artist(variant: Variant, placement: Placement) -> Artist {
    let config = Config { variant, strokes: 4, ..tiny(placement) };
    let (model, params) = lively(&config, &Device::cpu_f64());
    Artist { model, params }
}

fn images(artist: &Artist, n: usize) -> Tensor {
    let side = artist.model.config.image;
    Rng::new(5, 0).uniform_tensor(artist.params.device(), Stream(0), &[n, side, side])
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
}

#[test]
fn a_drawing_that_is_read_back_from_json_scores_as_when_it_was_drawn() {
    for placement in [Placement::Warp, Placement::Points] {
        for variant in DRAW {
            let artist = artist(variant, placement);
            let drawn =
                Drawn::all(&artist.model, &artist.imagine(12, Some(PEN), Heat::PAPER, 4, Rng::new(1, 0)).unwrap());
            let counts: Vec<usize> = drawn.iter().map(|one| one.drawing.strokes.len()).collect();
            assert!(counts.iter().any(|&n| n != counts[0]), "{variant}: all drawings have {} strokes", counts[0]);
            let drawings = drawn.iter().map(|one| one.drawing.clone()).collect();
            let file = DrawingFile::new(variant.to_string(), 16, drawings).to_json();
            let read = DrawingFile::parse(file.as_bytes(), "a").unwrap().drawings;
            let scored = Drawn::all(&artist.model, &artist.score(&read, None, None, 4).unwrap());
            for (drawn, scored) in drawn.iter().zip(&scored) {
                close(scored.drawing.log_prior.unwrap(), drawn.drawing.log_prior.unwrap());
                let pairs = scored.drawing.strokes.iter().zip(&drawn.drawing.strokes);
                assert_eq!(scored.drawing.strokes.len(), drawn.drawing.strokes.len());
                for (a, b) in pairs {
                    let (a, b) = (a.log_prior.unwrap(), b.log_prior.unwrap());
                    close(a.onoff, b.onoff);
                    close(a.layout, b.layout);
                    close(a.stroke, b.stroke);
                }
                for (a, b) in scored.canvas().iter().zip(drawn.canvas()) {
                    assert!((a - b).abs() < 1e-6);
                }
            }
        }
    }
}

#[test]
fn strokes_without_windows_are_scored_in_windows_around_them() {
    let artist = artist(Variant::Sp, Placement::Points);
    let points = (0..artist.model.config.points).map(|i| format!("[0.{}, 0.4]", 2 + i)).collect::<Vec<_>>().join(",");
    let file = format!(
        "{{\"format\":\"dood-drawings\",\"version\":1,\"drawings\":[{{\"strokes\":[{{\"points\":[{points}]}}]}}]}}"
    );
    let drawings = DrawingFile::parse(file.as_bytes(), "a").unwrap().drawings;
    let scored = Drawn::all(&artist.model, &artist.score(&drawings, Some(PEN), None, 4).unwrap());
    assert!(scored[0].drawing.log_prior.unwrap().is_finite());
    for (a, b) in scored[0].drawing.strokes[0].points.iter().zip(&drawings[0].strokes[0].points) {
        assert!((a[0] - b[0]).abs() < 1e-12 && (a[1] - b[1]).abs() < 1e-12);
    }
    let error = artist.score(&drawings, None, None, 4).err().unwrap().to_string();
    assert!(error.contains("nothing of their pen"), "{error}");
    let other = Artist {
        model: Model::new(&Config { points: 7, ..artist.model.config.clone() }, Start::new(0), &Device::cpu_f64())
            .unwrap()
            .0,
        ..artist
    };
    let error = other.score(&drawings, Some(PEN), None, 4).err().unwrap().to_string();
    assert!(error.contains("control points; this model draws with 7"), "{error}");
}

#[test]
fn the_best_of_many_is_at_least_as_good_as_the_first_and_the_same_again() {
    let artist = artist(Variant::Dood, Placement::Warp);
    let x = images(&artist, 5);
    let redraw = |particles, keep| -> Vec<Drawn> {
        let best = artist.redraw(&x, (Protocol::published(particles), keep), 4, Rng::new(2, 0), &Silent).unwrap();
        best.into_iter().map(|one| one.drawn).collect()
    };
    let (one, many, joint) = (redraw(1, Best::Likelihood), redraw(20, Best::Likelihood), redraw(20, Best::Joint));
    for i in 0..5 {
        let likelihood = |d: &[Drawn]| d[i].drawing.log_likelihood.unwrap();
        let total = |d: &[Drawn]| likelihood(d) + d[i].drawing.log_prior.unwrap();
        assert!(likelihood(&many) >= likelihood(&joint) && total(&joint) >= total(&many));
        assert!(
            many[i].drawing.log_posterior.unwrap().is_finite()
                && one[i].canvases.len() == one[i].drawing.strokes.len().max(1)
        );
    }
    let again = redraw(20, Best::Likelihood);
    assert!(many.iter().zip(&again).all(|(a, b)| a.drawing == b.drawing && a.canvases == b.canvases));
}

#[test]
fn more_strokes_than_were_learned_can_be_drawn() {
    let artist = artist(Variant::Dood, Placement::Points);
    let x = images(&artist, 2);
    let drawn = artist.redraw(&x, (Protocol::published(30), Best::Likelihood), 9, Rng::new(2, 0), &Silent).unwrap();
    assert!(drawn.iter().any(|one| one.drawn.drawing.strokes.len() > 4), "nine are possible");
    let drawn = artist.imagine_many(70, (Some(PEN), Heat::ONE), 9, Rng::new(2, 0), &Silent).unwrap();
    assert!(drawn.len() == 70 && drawn.iter().any(|one| one.drawing.strokes.len() > 4));
    let fewer = artist.imagine_many(3, (Some(PEN), Heat::ONE), 9, Rng::new(2, 0), &Silent).unwrap();
    assert!(
        fewer.iter().zip(&drawn).all(|(a, b)| a.drawing == b.drawing),
        "the first are the same however many are wanted"
    );
}

#[test]
fn completions_keep_what_was_begun_and_score_as_whole_drawings() {
    let artist = artist(Variant::Dood, Placement::Points);
    let begun = artist.imagine_many(3, (Some(PEN), Heat::PAPER), 2, Rng::new(4, 0), &Silent).unwrap();
    let begun: Vec<_> = begun.into_iter().map(|one| one.drawing).collect();
    let how = (Some(PEN), Heat::PAPER);
    let rows = artist.complete(&Beginning::Drawings(begun.clone()), 5, how, 3, Rng::new(9, 0), &Silent).unwrap();
    assert_eq!((rows.len(), rows[0].drawn.len()), (3, 5));
    let mut longer = 0;
    for (row, begun) in rows.iter().zip(&begun) {
        for one in &row.drawn {
            let kept = one.drawing.strokes.iter().zip(&begun.strokes);
            assert!(
                one.drawing.strokes.len() >= begun.strokes.len()
                    && one.canvases.len() == one.drawing.strokes.len().max(1)
            );
            kept.for_each(|(a, b)| assert!(a.points.iter().zip(&b.points).all(|(a, b)| (a[0] - b[0]).abs() < 1e-9)));
            longer += one.drawing.strokes.len() - begun.strokes.len();
            // The whole drawing, scored at once, has the density that its parts had; a drawing may go on for 2 + 3 strokes.
            let most = begun.strokes.len() + 3;
            let whole = artist.score(std::slice::from_ref(&one.drawing), None, None, most).unwrap();
            let whole = Drawn::all(&artist.model, &whole);
            close(whole[0].drawing.log_prior.unwrap(), one.drawing.log_prior.unwrap());
        }
    }
    assert!(longer > 0, "nothing was added");
    for beginning in [Beginning::Images(images(&artist, 2)), Beginning::Imagined(4)] {
        let rows = artist.complete(&beginning, 2, how, 3, Rng::new(9, 0), &Silent).unwrap();
        assert!(rows.iter().all(|row| row.drawn.len() == 2 && row.lead.is_some()));
    }
}

#[test]
fn a_prior_that_looks_at_the_image_cannot_draw_from_nothing() {
    let artist = artist(Variant::Eg, Placement::Warp);
    let error = artist.imagine(2, Some(PEN), Heat::ONE, 3, Rng::new(0, 0)).err().unwrap();
    assert!(matches!(&error, Error::Usage(what) if what.contains("without an image")), "{error}");
}

#[test]
fn median_pens_are_those_in_the_middle() {
    let artist = artist(Variant::Dood, Placement::Warp);
    let x = images(&artist, 7);
    let pen = artist.median_pen(&x, Rng::new(0, 0)).unwrap().unwrap();
    let drawings = artist.recognise(&x, 1, Rng::new(0, 0)).unwrap();
    let pens = drawings.pen.as_ref().unwrap().stroke.to_f64();
    assert_eq!(pens.iter().step_by(2).filter(|&&sigma| sigma < pen.sigma).count(), 3);
    assert!(pens.chunks(2).any(|p| p[1] == pen.slope) && (0.1..1.5).contains(&pen.canvas_slope));
    assert!(self::artist(Variant::Air, Placement::Warp).median_pen(&x, Rng::new(0, 0)).unwrap().is_none());
}

#[test]
fn exemplars_differ_from_each_other_and_are_painted_where_their_strokes_are() {
    let artist = artist(Variant::Dood, Placement::Points);
    let x = images(&artist, 2);
    let rows = artist.vary(&x, &Token::PAPER, (3, 2), Rng::new(1, 0), &Silent).unwrap();
    assert_eq!((rows.len(), rows[0].drawn.len()), (2, 3));
    for row in &rows {
        assert!(row.drawn[0].drawing != row.drawn[1].drawing);
        for one in &row.drawn {
            let painted =
                paint(std::slice::from_ref(&one.drawing), Default::default(), 16, &Device::cpu_f64()).pop().unwrap();
            assert!(painted.to_f32().iter().zip(one.canvas()).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let written = gallery::write(&folder.path().join("a.b"), &artist.model, "given", &rows).unwrap();
    assert_eq!(written.len(), 3);
    assert!(written.iter().all(|path| path.metadata().unwrap().len() > 100));
    let curveless =
        self::artist(Variant::Dair, Placement::Warp).vary(&x, &Token::PAPER, (1, 1), Rng::new(1, 0), &Silent);
    assert!(curveless.err().unwrap().to_string().contains("draws without curves"));
}
