//! Densities, elementwise ops, and functions without a gradient.

use super::{Case, J, K, SIDE, columns, ink, layouts, mask, normal, uniform};
use dood::{
    Tensor,
    ops::{
        Likelihood, Range, Squash, combine, concat, mixture_sample, normal_sample, nvil, prefix_bound, residual_ratio,
        sample_onoff, stack,
    },
};

pub fn small() -> Vec<Case> {
    let ends = [prefixes(1, 3), prefixes(6, 64), prefixes(4, 300)].into();
    [elementwise(), shapes(), squash(), gaussians(), mixtures(), onoff(), log_mean_exp(), learning_signal(), ends]
        .into_iter()
        .flatten()
        .collect()
}

fn elementwise() -> Vec<Case> {
    let extremes = vec![-1e4, -100.0, -20.0, -1e-8, 0.0, 1e-8, 20.0, 100.0, 1e4];
    let mut all = vec![];
    for shape in [&[1][..], &[3, 5], &[7, 333]] {
        all.extend([
            Case::new(format!("add {shape:?}"), &[shape, shape], |_, x, _| x[0] + x[1]),
            Case::new(format!("sub {shape:?}"), &[shape, shape], |_, x, _| x[0] - x[1]),
            Case::new(format!("mul {shape:?}"), &[shape, shape], |_, x, _| x[0] * x[1]),
            Case::new(format!("scale {shape:?}"), &[shape], |_, x, _| x[0] * -2.5),
            Case::new(format!("offset {shape:?}"), &[shape], |_, x, _| x[0] + 3.25),
            Case::new(format!("softplus {shape:?}"), &[shape], |_, x, _| x[0].softplus()),
            Case::new(format!("sum {shape:?}"), &[shape], |_, x, _| x[0].sum()),
        ]);
    }
    all.extend([
        Case::new("square", &[&[5, 4]], |_, x, _| x[0] * x[0]),
        Case::new("sub of a constant", &[&[40]], |tape, x, c| tape.constant(c[0].clone()) - x[0])
            .with_constant(&[40], normal(1, &[40], 0.0, 1.0)),
        Case::new("mul with a constant", &[&[40]], |tape, x, c| x[0] * tape.constant(c[0].clone()))
            .with_constant(&[40], normal(1, &[40], 0.0, 1.0)),
        Case::new("softplus at the extremes", &[&[9]], |_, x, _| x[0].softplus()).with_input(0, extremes),
        Case::new("combine of eleven", &[&[7, 30][..]; 11], |_, x, _| {
            combine(&x.iter().enumerate().map(|(k, &x)| (0.5 * k as f64 - 1.0, x)).collect::<Vec<_>>())
        }),
        Case::new("combine with itself and a constant", &[&[300]], |tape, x, c| {
            combine(&[(1.0, x[0]), (2.0, tape.constant(c[0].clone())), (-3.0, x[0])])
        })
        .with_constant(&[300], normal(1, &[300], 0.0, 1.0)),
        Case::new("sum of few rows", &[&[6, 300]], |_, x, _| x[0].sum_rows()),
        Case::new("sum of many rows", &[&[1100, 3, 2]], |_, x, _| x[0].sum_rows()),
        Case::new("mean", &[&[33, 70]], |_, x, _| x[0].mean()),
    ]);
    all
}

fn shapes() -> Vec<Case> {
    let many: Vec<Vec<usize>> = (0..19).map(|i| vec![6, 1 + i % 5]).collect();
    let many: Vec<&[usize]> = many.iter().map(Vec::as_slice).collect();
    vec![
        Case::new("concat", &[&[6, 3], &[6], &[6, 2, 2]], |_, x, _| concat(x)),
        Case::new("concat of one", &[&[6, 3]], |_, x, _| concat(x)),
        Case::new("concat of eight", &many[..8], |_, x, _| concat(x)),
        Case::new("concat of nineteen", &many, |_, x, _| concat(x)),
        Case::new("concat of the same", &[&[50, 13]], |_, x, _| concat(&[x[0], x[0]])),
        Case::new("concat with a constant", &[&[6, 4]], |tape, x, c| concat(&[tape.constant(c[0].clone()), x[0]]))
            .with_constant(&[6, 2], normal(1, &[6, 2], 0.0, 1.0)),
        Case::new("stack", &[&[33, 2][..]; 6], |_, x, _| stack(x)),
        Case::new("stack of nine", &[&[40][..]; 9], |_, x, _| stack(x)),
        Case::new("rows", &[&[7, 4]], |_, x, _| x[0].rows(2, 3)),
        Case::new("rows of blocks", &[&[5, 3, 50]], |_, x, _| x[0].rows(1, 4)),
        Case::new("columns", &[&[50, 9]], |_, x, _| x[0].columns(2, 5)),
        Case::new("column", &[&[7, 4]], |_, x, _| x[0].column(3)),
        Case::new("overlapping windows", &[&[6, 4]], |_, x, _| x[0].rows(0, 3) * x[0].rows(2, 3)),
        Case::new("reshape", &[&[6, 5]], |_, x, _| x[0].reshape(&[3, 10]) * 2.0),
    ]
}

fn squash() -> Vec<Case> {
    let odd: Vec<_> = (0..23).map(|i| (1 + i % 3, Range::Within(0.0, 1.0 + (i * i % 17) as f64))).collect();
    let all = [
        ("layout", Squash::layout()),
        ("stroke", Squash::stroke(5)),
        ("layout prior", Squash::layout_prior(40)),
        ("stroke prior", Squash::stroke_prior(5, 40)),
        ("pen", Squash::pen(0.01)),
        ("canvas slope", Squash::canvas_slope()),
        ("on/off", Squash::onoff()),
        ("pixel scale", Squash::pixel_scale()),
        ("free", Squash::new(&[(3, Range::Free)])),
        ("odd ranges", Squash::new(&odd)),
        (
            "every range",
            Squash::new(&[(2, Range::Above(1e-6)), (1, Range::Free), (3, Range::Tanh), (1, Range::Within(-2.0, 3.0))]),
        ),
    ];
    let case = |(name, ranges): (&str, Squash)| {
        let shape = [7, ranges.columns()];
        let far = normal(3, &shape, 0.0, 20.0);
        let other = ranges.clone();
        [
            Case::new(format!("squash {name}"), &[&shape], move |_, x, _| x[0].squash(&ranges)),
            Case::new(format!("squash {name}, saturated"), &[&shape], move |_, x, _| x[0].squash(&other))
                .with_input(0, far),
        ]
    };
    let rows_of_one = Case::new("squash a square", &[&[3, 4, 25]], |_, x, _| x[0].squash(&Squash::pixel_scale()));
    all.into_iter().flat_map(case).chain([rows_of_one]).collect()
}

/// Packed parameters with so many logits per Gaussian, 0 or 1; the stds are positive.
fn parameters(n: usize, gaussians: usize, d: usize, logits: usize) -> Vec<f64> {
    let width = gaussians * (2 * d + 1 + logits);
    let mut p = normal(7, &[n, width], 0.0, 0.5);
    let std = uniform(7, &[n, gaussians * d], 0.3, 1.3);
    for (row, std) in p.chunks_mut(width).zip(std.chunks(gaussians * d)) {
        row[gaussians * (logits + d)..][..gaussians * d].copy_from_slice(std);
    }
    p
}

fn gaussians() -> Vec<Case> {
    let mut all = vec![];
    for (n, groups, d) in [(1, 1, 2), (64, 1, 4), (64, 5, 2), (7, 3, 3), (5, 2, 5), (3, 40, 2)] {
        let (z, p) = ([n, groups * d], [n, groups * (2 * d + 1)]);
        let name = |op: &str| format!("{op} {n}x{groups}x{d}");
        all.push(
            Case::new(name("gaussian_logpdf"), &[&z, &p], move |_, x, _| x[0].gaussian_logpdf(x[1], groups, None))
                .with_input(1, parameters(n, groups, d, 0)),
        );
        all.push(
            Case::new(name("gaussian_sample"), &[&p], move |_, x, eps| x[0].gaussian_sample(&eps[0], groups))
                .with_constant(&z, normal(9, &z, 0.0, 1.0)),
        );
    }
    let (z, p) = ([4, 10], [4, 25]);
    let small: Vec<f64> = (0..4).flat_map(|_| [vec![0.25; 10], vec![1e-9; 10], vec![0.0; 5]].concat()).collect();
    all.extend([
        Case::new("gaussian_logpdf of a constant", &[&p], |tape, x, c| {
            tape.constant(c[0].clone()).gaussian_logpdf(x[0], 5, None)
        })
        .with_input(0, parameters(4, 5, 2, 0))
        .with_constant(&z, normal(9, &z, 0.0, 1.0)),
        Case::new("gaussian_logpdf with constants", &[&z], |tape, x, c| {
            x[0].gaussian_logpdf(tape.constant(c[0].clone()), 5, None)
        })
        .with_constant(&p, parameters(4, 5, 2, 0)),
        Case::new("gaussian_logpdf of the smallest stds", &[&z, &p], |_, x, _| x[0].gaussian_logpdf(x[1], 5, None))
            .with_input(0, vec![0.25; 40])
            .with_input(1, small),
    ]);
    all.push(
        // The gradients of all rows are there when those of the live rows are added.
        Case::new("gaussian_logpdf of live rows", &[&[33, 10], &[33, 25]], |_, x, c| {
            x[0].gaussian_logpdf(x[1], 5, Some(&c[0])) + x[0].gaussian_logpdf(x[1], 5, None) * 0.5
        })
        .with_input(1, parameters(33, 5, 2, 0))
        .with_constant(&[33, 1], mask(33, 3)),
    );
    for d in [1, 4, 9] {
        let (mean, std) = (normal(1, &[d], 0.0, 1.0), uniform(2, &[d], 0.2, 2.0));
        let (mean2, std2) = (mean.clone(), std.clone());
        all.extend([
            Case::new(format!("normal_logpdf {d}"), &[&[70, d]], move |_, x, _| x[0].normal_logpdf(&mean, &std)),
            Case::new(format!("normal_sample {d}"), &[], move |tape, _, c| {
                tape.constant(normal_sample(&mean2, &std2, &c[0]))
            })
            .with_constant(&[70, d], normal(9, &[70, d], 0.0, 1.0)),
        ]);
    }
    all
}

fn mixtures() -> Vec<Case> {
    let mut all = vec![];
    let sizes =
        [(1, 1, 1, 2), (20, 1, 40, 4), (20, 5, 40, 2), (7, 2, 3, 3), (5, 2, 33, 5), (3, 9, 70, 2), (2, 1, 32, 2)];
    for (n, groups, k, d) in sizes {
        for distance in [0.5, 30.0] {
            let (z, p) = ([n, groups * d], [n, groups * k * (2 * d + 2)]);
            all.push(
                Case::new(format!("mixture_logpdf {n}x{groups}x{k}x{d} at {distance}"), &[&z, &p], move |_, x, _| {
                    x[0].mixture_logpdf(x[1], groups, k, None)
                })
                .with_input(0, normal(8, &z, 0.0, distance))
                .with_input(1, parameters(n, groups * k, d, 1)),
            );
        }
    }
    for (n, groups, k, d) in [(1, 1, 1, 2), (20, 1, 40, 4), (100, 5, 40, 2), (7, 2, 3, 3)] {
        let (z, p, heat) = ([n, groups * d], [n, groups * k * (2 * d + 2)], uniform(10, &[groups * d], 0.1, 1.0));
        all.push(
            Case::new(format!("mixture_sample {n}x{groups}x{k}x{d}"), &[], move |tape, _, c| {
                tape.constant(mixture_sample(&c[0], groups, k, &c[1], &c[2], &heat))
            })
            .with_constant(&p, parameters(n, groups * k, d, 1))
            .with_constant(&[n, groups], uniform(11, &[n, groups], 0.0, 1.0))
            .with_constant(&z, normal(9, &z, 0.0, 1.0)),
        );
    }
    let (z, p) = ([6, 10], [6, 5 * 12 * 6]);
    all.extend([
        Case::new("mixture_logpdf of live rows", &[&z, &p], |_, x, c| {
            x[0].mixture_logpdf(x[1], 5, 12, Some(&c[0])) + x[0].mixture_logpdf(x[1], 5, 12, None) * 0.5
        })
        .with_input(1, parameters(6, 60, 2, 1))
        .with_constant(&[6], mask(6, 3)),
        Case::new("mixture_logpdf of a constant", &[&p], |tape, x, c| {
            tape.constant(c[0].clone()).mixture_logpdf(x[0], 5, 12, None)
        })
        .with_input(0, parameters(6, 60, 2, 1))
        .with_constant(&z, normal(9, &z, 0.0, 1.0)),
        Case::new("mixture_logpdf with constants", &[&z], |tape, x, c| {
            x[0].mixture_logpdf(tape.constant(c[0].clone()), 5, 12, None)
        })
        .with_constant(&p, parameters(6, 60, 2, 1)),
    ]);
    all
}

fn onoff() -> Vec<Case> {
    let n = 300;
    let p = {
        let mut p = uniform(4, &[n], 0.05, 0.95);
        p[..4].copy_from_slice(&[0.0, 1.0, 0.5, 0.25]);
        p
    };
    // Sixteenths, so that some numbers equal their probability.
    let sixteenths = |stream| uniform(stream, &[n], 0.0, 16.0).iter().map(|x| x.floor() / 16.0).collect::<Vec<_>>();
    vec![
        Case::new("onoff_probability", &[&[n]], |_, x, c| x[0].onoff_probability(&c[0]))
            .with_input(0, p.clone())
            .with_constant(&[n], mask(n, 3)),
        Case::new("bernoulli_logpdf", &[&[n]], |_, x, c| x[0].bernoulli_logpdf(&c[0], &c[1], 1e-7))
            .with_input(0, p)
            .with_constant(&[n], mask(n, 2))
            .with_constant(&[n], mask(n, 7)),
        Case::new("sample_onoff", &[], |tape, _, c| tape.constant(sample_onoff(&c[0], &c[1], &c[2])))
            .with_constant(&[n], sixteenths(5))
            .with_constant(&[n], sixteenths(6))
            .with_constant(&[n], mask(n, 5)),
    ]
}

fn log_mean_exp() -> Vec<Case> {
    let mut extremes = normal(1, &[40, 5], -100.0, 50.0);
    for p in 0..40 {
        extremes[5 * p] = if p == 3 { 6000.0 } else { -6000.0 };
        extremes[5 * p + 2] = f64::NEG_INFINITY;
        if p != 39 {
            extremes[5 * p + 4] = f64::NEG_INFINITY;
        }
    }
    let case = |p, b| Case::new(format!("log_mean_exp {p}x{b}"), &[&[p, b]], |_, x, _| x[0].log_mean_exp());
    vec![
        case(1, 3),
        case(4, 64),
        case(50, 7),
        Case::new("log_mean_exp at the extremes", &[&[40, 5]], |_, x, _| x[0].log_mean_exp()).with_input(0, extremes),
    ]
}

fn prefixes(t: usize, n: usize) -> Case {
    let (steps, ends) = ([t, n], [t + 1, n]);
    Case::new(format!("prefix_bound {t}x{n}"), &[&steps, &steps, &steps, &ends], |_, x, _| {
        prefix_bound(x[0], x[1], x[2], x[3], f32::EPSILON as f64)
    })
    .with_input(0, uniform(1, &steps, 0.05, 0.95))
    .with_input(1, uniform(2, &steps, 0.05, 0.95))
}

fn learning_signal() -> Vec<Case> {
    let mut all = vec![];
    for (steps, b, iteration) in [(5, 7, 0), (6, 64, 3), (1, 1100, 1), (40, 33, 0)] {
        let shape = [steps, b];
        let tensors = |case: Case| {
            case.with_constant(&shape, normal(1, &shape, 1.0, 2.0))
                .with_constant(&[b], normal(2, &[b], -300.0, 40.0))
                .with_constant(&shape, mask(steps * b, 4))
                .with_constant(&shape, normal(3, &shape, 70.0, 10.0))
                .with_constant(&[2], vec![5.0, 90.0])
        };
        let part = |a: nvil::Advantage, i: usize| -> Tensor { [a.signal, a.raw, a.normalised, a.running][i].clone() };
        for (i, name) in ["signal", "raw", "normalised", "running"].into_iter().enumerate() {
            let call = Case::new(format!("advantage {steps}x{b}, {name}"), &[], move |tape, _, c| {
                tape.constant(part(nvil::advantage(&c[0], &c[1], &c[2], &c[3], 4.0, &c[4], iteration), i))
            });
            all.push(tensors(call));
        }
        all.push(tensors(Case::new(format!("normalise {steps}x{b}"), &[], move |tape, _, c| {
            tape.constant(nvil::normalise(&c[3], &c[2], &c[4], iteration).0)
        })));
    }
    all
}

pub fn sized(n: usize) -> Vec<Case> {
    let prior = 6 * J * K;
    let image = [n, SIDE, SIDE];
    let steps = [6, n];
    let row = |stream| columns(stream, n, &[(0.1, 0.9)]);
    vec![
        Case::new("mixture_logpdf stroke, 5 x K=40", &[&[n, 2 * J], &[n, prior]], |_, x, _| {
            x[0].mixture_logpdf(x[1], J, K, None)
        })
        .with_input(1, parameters(n, J * K, 2, 1))
        .against(7.965),
        Case::new("mixture_logpdf layout, K=40 4-D", &[&[n, 4], &[n, 10 * K]], |_, x, _| {
            x[0].mixture_logpdf(x[1], 1, K, None)
        })
        .with_input(0, layouts(n))
        .with_input(1, parameters(n, K, 4, 1))
        .against(3.944),
        Case::new("mixture_sample stroke, 5 x K=40", &[], |tape, _, c| {
            tape.constant(mixture_sample(&c[0], J, K, &c[1], &c[2], &[0.1; 2 * J]))
        })
        .with_constant(&[n, prior], parameters(n, J * K, 2, 1))
        .with_constant(&[n, J], uniform(1, &[n, J], 0.0, 1.0))
        .with_constant(&[n, 2 * J], normal(1, &[n, 2 * J], 0.0, 1.0)),
        Case::new("gaussian_sample + logpdf stroke", &[&[n, 5 * J]], |_, x, eps| {
            x[0].gaussian_sample(&eps[0], J).gaussian_logpdf(x[0], J, None)
        })
        .with_input(0, parameters(n, J, 2, 0))
        .with_constant(&[n, 2 * J], normal(4, &[n, 2 * J], 0.0, 1.0))
        .against(1.656),
        Case::new("image_logpdf laplace", &[&image, &[SIDE, SIDE]], |_, x, c| {
            x[0].image_logpdf(&c[0], x[1], Likelihood::Laplace)
        })
        .with_input(0, ink(1, n))
        .with_constant(&image, ink(0, n))
        .against(2.431),
        Case::new("bernoulli_logpdf", &[&[n]], |_, x, ones| {
            x[0].onoff_probability(&ones[0]).bernoulli_logpdf(&ones[0], &ones[0], f32::EPSILON as f64)
        })
        .with_input(0, row(7))
        .with_constant(&[n], vec![1.0; n]),
        Case::new("squash stroke prior, 1200 columns", &[&[n, prior]], |_, x, _| {
            x[0].squash(&Squash::stroke_prior(J, K))
        }),
        prefixes(6, n),
        Case::new("log_mean_exp, 200 particles", &[&[200, n]], |_, x, _| x[0].log_mean_exp()),
        Case::new("add images", &[&image[..]; 2], |_, x, _| x[0] + x[1]),
        Case::new("mul images", &[&image[..]; 2], |_, x, _| x[0] * x[1]),
        Case::new("scale images", &[&image], |_, x, _| x[0] * 2.0),
        Case::new("softplus images", &[&image], |_, x, _| x[0].softplus()),
        Case::new("sum of an image batch", &[&image], |_, x, _| x[0].sum()),
        Case::new("concat 256+256+256+1", &[&[n, 256], &[n, 256], &[n, 256], &[n, 1]], |_, x, _| concat(x)),
        Case::new("sample_onoff", &[], |tape, _, c| tape.constant(sample_onoff(&c[0], &c[1], &c[2])))
            .with_constant(&[n], row(3))
            .with_constant(&[n], row(2))
            .with_constant(&[n], vec![1.0; n]),
        Case::new("residual_ratio", &[], |tape, _, c| tape.constant(residual_ratio(&c[0], &c[1])))
            .with_constant(&image, ink(1, n))
            .with_constant(&image, ink(0, n)),
        Case::new("nvil advantage", &[], |tape, _, c| {
            tape.constant(nvil::advantage(&c[0], &c[1], &c[2], &c[0], 4.0, &c[3], 1).normalised)
        })
        .with_constant(&steps, normal(1, &steps, 0.0, 1.0))
        .with_constant(&[n], row(1))
        .with_constant(&steps, vec![1.0; 6 * n])
        .with_constant(&[2], vec![0.0; 2]),
    ]
}
