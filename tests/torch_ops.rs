//! The general ops against PyTorch's, values and gradients in double precision, with edge cases: empty dimensions, sizes of 1, broadcasting
//! both ways, ties, infinities. `tests/torch_ops.py` has made the fixture.

use dood::{
    Device, Grads, ParamsBuilder, Tape, Tensor, Var,
    nn::BatchNorm,
    ops::{Moments, Window},
};
use serde_json::Value;

/// An op by its name in the fixture.
fn apply<'t>(op: &str, x: &[Var<'t>], constants: &[Tensor], sizes: &[usize]) -> Var<'t> {
    let window = || Window { size: sizes[0], stride: sizes[1], padding: sizes[2] };
    match op {
        "relu" => x[0].relu(),
        "sigmoid" => x[0].sigmoid(),
        "tanh" => x[0].tanh(),
        "exp" => x[0].exp(),
        "log" => x[0].log(),
        "sqrt" => x[0].sqrt(),
        "abs" => x[0].abs(),
        "pow_2" => x[0].pow(2.0),
        "pow_0" => x[0].pow(0.0),
        "pow_half" => x[0].pow(2.5),
        "add" => x[0] + x[1],
        "sub" => x[0] - x[1],
        "mul" => x[0] * x[1],
        "div" => x[0] / x[1],
        "maximum" => x[0].maximum(x[1]),
        "minimum" => x[0].minimum(x[1]),
        "pow" => x[0].pow_of(x[1]),
        "sum_over" => x[0].sum_over(sizes),
        "mean_over" => x[0].mean_over(sizes),
        "max_over" => x[0].max_over(sizes),
        "permute" => x[0].permute(sizes),
        "permute_twice" => x[0].permute(&[2, 0, 1]).permute(&[1, 2, 0]),
        "transpose" => x[0].transpose(),
        "slice" => x[0].slice(sizes[0], sizes[1]..sizes[2]),
        "slice_transposed" => x[0].transpose().slice(0, 1..3) * 2.0,
        "expand" => x[0].expand(sizes),
        "gather" => x[0].gather(&constants[0]),
        "matmul" => x[0].matmul(x[1]),
        "matmul_nt" => x[0].matmul_nt(x[1]),
        "matmul_tn" => x[0].matmul_tn(x[1]),
        "matmul_of_transposed" => x[0].transpose().matmul(x[1]),
        "softmax" => x[0].softmax(),
        "log_softmax" => x[0].log_softmax(),
        "cross_entropy" => x[0].cross_entropy(&constants[0]),
        "conv2d" => x[0].conv2d(x[1], x[2], sizes[0], sizes[1]),
        "max_pool" => x[0].max_pool(window()),
        "average_pool" => x[0].average_pool(window()),
        "layer_norm" => x[0].layer_norm(x[1], x[2], 1e-5),
        "batch_norm" => x[0].batch_norm(x[1], x[2], 1e-5).0,
        "batch_norm_by" => {
            let moments = Moments { mean: constants[0].clone(), variance: constants[1].clone() };
            x[0].batch_norm_by(&moments, x[1], x[2], 1e-5)
        }
        "batch_norm_learned" => {
            let (layer, params) = {
                let mut builder = ParamsBuilder::new();
                (BatchNorm::new(&mut builder, "layer", 3), builder.build(constants[0].device()))
            };
            let mut running = Moments::new(constants[0].device(), 3);
            for batch in constants {
                let tape = Tape::new(&params);
                layer.learn(tape.constant(batch.clone()), &mut running);
            }
            x[0].batch_norm_by(&running, x[1], x[2], 1e-5)
        }
        other => panic!("the fixture has an op {other}"),
    }
}

fn numbers(values: &Value) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok()).expect("a number");
    values.as_array().expect("a list").iter().map(number).collect()
}

fn sizes(values: &Value) -> Vec<usize> {
    numbers(values).into_iter().map(|n| n as usize).collect()
}

fn tensors(list: &Value, device: &Device) -> Vec<Tensor> {
    let tensor = |x: &Value| Tensor::from_f64(device, &sizes(&x["shape"]), &numbers(&x["values"]));
    list.as_array().expect("a list").iter().map(tensor).collect()
}

/// The largest difference relative to the largest number, 1 at least; infinite where something is not finite in one only.
fn distance(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let size = wanted.iter().filter(|x| x.is_finite()).fold(1.0f64, |most, x| most.max(x.abs()));
    found.iter().zip(wanted).fold(0.0, |worst, (a, b)| match a == b || a.is_nan() && b.is_nan() {
        true => worst,
        false if a.is_finite() && b.is_finite() => worst.max((a - b).abs() / size),
        false => f64::INFINITY,
    })
}

/// Checks every case on a device; the number of cases.
fn check(device: &Device, allowed: f64) -> usize {
    let text = include_str!("torch_ops.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("the fixture is JSON");
    let mut failures = vec![];
    for case in &cases {
        let op = case["op"].as_str().expect("a name");
        let tape = Tape::without_params(device);
        let x: Vec<Var> = tensors(&case["inputs"], device).into_iter().map(|x| tape.input(x)).collect();
        let y = apply(op, &x, &tensors(&case["constants"], device), &sizes(&case["sizes"]));
        let wanted = &case["y"];
        assert_eq!(y.shape(), sizes(&wanted["shape"]), "{op} of {:?}", x.iter().map(|x| x.shape()).collect::<Vec<_>>());
        let dy = tape.constant(Tensor::from_f64(device, &y.shape(), &numbers(&case["dy"])));
        let found = tape.backward((y * dy).sum(), &mut Grads::none(device));
        let mut hold = |what: String, found: Vec<f64>, wanted: &Value| {
            let error = distance(&found, &numbers(wanted));
            if error > allowed {
                let shapes: Vec<_> = x.iter().map(|x| x.shape()).collect();
                failures.push(format!("{op} of {shapes:?}: {what} is off by {error:.1e}: {found:?}, wanted {wanted}"));
            }
        };
        hold("the result".into(), y.value().to_f64(), &wanted["values"]);
        for (i, (&x, wanted)) in x.iter().zip(case["gradients"].as_array().expect("a list")).enumerate() {
            hold(format!("the gradient of input {i}"), found.of(x).to_f64(), wanted);
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    cases.len()
}

#[test]
fn ops_agree_with_pytorch() {
    assert!(check(&Device::cpu_f64(), 1e-10) > 100);
}
