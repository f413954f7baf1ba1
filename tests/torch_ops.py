"""Values and gradients of the general ops by PyTorch, in double precision, for tests/torch_ops.rs.

    python tests/torch_ops.py          (PyTorch 2.15, on a CPU; writes tests/torch_ops.json)

Every case has random inputs or given ones, the result y, random weights dy, and the gradients of sum(dy * y). Numbers that JSON does not
know are strings.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
INF = math.inf
cases = []


def numbers(x):
    return [v if math.isfinite(v) else str(v) for v in x.detach().contiguous().flatten().tolist()]


def case(op, f, *inputs, sizes=(), constants=()):
    """Inputs are shapes (of normal numbers), or lists of numbers."""
    made = []
    for given in inputs:
        drawn = isinstance(given, tuple)
        made.append((torch.randn(given) if drawn else torch.tensor(given, dtype=torch.float64)).requires_grad_())
    y = f(*made)
    dy = torch.randn(y.shape)
    gradients = torch.autograd.grad(y, made, dy, allow_unused=True)
    zeros = [torch.zeros_like(x) if g is None else g for x, g in zip(made, gradients)]
    cases.append({
        "op": op,
        "sizes": list(sizes),
        "inputs": [{"shape": list(x.shape), "values": numbers(x)} for x in made],
        "constants": [{"shape": list(c.shape), "values": numbers(c)} for c in constants],
        "y": {"shape": list(y.shape), "values": numbers(y)},
        "dy": numbers(dy),
        "gradients": [numbers(g) for g in zeros],
    })


EXTREMES = [-800.0, -40.0, -1.5, -1e-9, 0.0, 1e-9, 0.3, 2.0, 40.0, 700.0]
POSITIVE = [1e-300, 1e-9, 0.25, 1.0, 2.0, 3e7]
for op, f, x in [
    ("relu", torch.relu, EXTREMES),
    ("sigmoid", torch.sigmoid, EXTREMES),
    ("tanh", torch.tanh, EXTREMES),
    ("exp", torch.exp, EXTREMES[:-1] + [-INF]),
    ("log", torch.log, POSITIVE + [INF]),
    ("sqrt", torch.sqrt, POSITIVE),
    ("abs", torch.abs, EXTREMES + [-INF, INF]),
    ("pow_2", lambda x: x.pow(2), EXTREMES),
    ("pow_0", lambda x: x.pow(0), EXTREMES),
    ("pow_half", lambda x: x.pow(2.5), POSITIVE),
]:
    case(op, f, x)
    case(op, f, [])

SHAPES = [((3, 4), (3, 4)), ((2, 3), (3,)), ((3, 1), (1, 4)), ((1,), (2, 1, 2)), ((2, 1, 3), (4, 1)), ((0, 3), (1, 3)), ((1, 0), (2, 1))]
for op, f in [("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("div", torch.div), ("maximum", torch.maximum), ("minimum", torch.minimum)]:
    for a, b in SHAPES:
        case(op, f, a, b)
for op, f in [("maximum", torch.maximum), ("minimum", torch.minimum)]:
    case(op, f, [1.0, 2.0, 3.0], [[2.0], [3.0]])
case("div", torch.div, [1.0, -2.0, 0.0], [4.0, 0.5, -3.0])
case("pow", torch.pow, [0.5, 2.0, 3.0, 1.0], [[2.0], [-1.5], [0.0]])

for axes in [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]:
    for shape in [(2, 3, 4), (2, 1, 3)]:
        case("sum_over", lambda x: x.sum(axes), shape, sizes=axes)
        case("mean_over", lambda x: x.mean(axes), shape, sizes=axes)
        case("max_over", lambda x: x.amax(axes), shape, sizes=axes)
case("sum_over", lambda x: x.sum(1), (2, 0, 3), sizes=[1])
case("sum_over", lambda x: x.sum(0), (2, 0, 3), sizes=[0])
case("mean_over", lambda x: x.mean(1), (2, 0, 3), sizes=[1])
case("max_over", lambda x: x.amax(1), [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-INF, 0.0, -INF]], sizes=[1])
case("max_over", lambda x: x.amax((0, 2)), [[[1.0, 5.0], [2.0, 2.0]], [[5.0, 5.0], [0.0, 2.0]]], sizes=[0, 2])

case("permute", lambda x: x.permute(2, 0, 1), (2, 3, 4), sizes=[2, 0, 1])
case("permute", lambda x: x.permute(1, 0), (3, 0), sizes=[1, 0])
case("permute_twice", lambda x: x.permute(2, 0, 1).permute(1, 2, 0), (2, 3, 4))
case("transpose", lambda x: x.transpose(-1, -2), (2, 3, 4))
case("slice", lambda x: x[:, 1:3], (2, 4, 3), sizes=[1, 1, 3])
case("slice", lambda x: x[2:2], (4, 3), sizes=[0, 2, 2])
case("slice_transposed", lambda x: x.t()[1:3] * 2, (2, 4))
case("expand", lambda x: x.expand(2, 3, 4), (3, 1), sizes=[2, 3, 4])
case("expand", lambda x: x.expand(0, 3), (1, 3), sizes=[0, 3])
case("expand", lambda x: x.expand(2, 5, 1, 3), (2, 1, 1, 3), sizes=[2, 5, 1, 3])
rows = torch.tensor([2.0, 0.0, 2.0, 3.0])
case("gather", lambda x: x[rows.long()], (4, 3), constants=[rows])
case("gather", lambda x: x[rows.long()], (4, 2, 2), constants=[rows])
none = torch.zeros(0)
case("gather", lambda x: x[none.long()], (4, 3), constants=[none])

for a, b in [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 2)), ((3, 0), (0, 2)), ((1, 1), (1, 1)), ((0, 2, 3), (0, 3, 2))]:
    case("matmul", torch.matmul, a, b)
case("matmul_nt", lambda a, b: a @ b.transpose(-1, -2), (2, 3, 4), (5, 4))
case("matmul_nt", lambda a, b: a @ b.transpose(-1, -2), (2, 3, 4), (2, 5, 4))
case("matmul_tn", lambda a, b: a.transpose(-1, -2) @ b, (2, 4, 3), (4, 5))
case("matmul_tn", lambda a, b: a.transpose(-1, -2) @ b, (4, 3), (4, 5))
case("matmul_of_transposed", lambda a, b: a.transpose(-1, -2) @ b, (2, 4, 3), (2, 4, 5))

for op, f in [("softmax", F.softmax), ("log_softmax", F.log_softmax)]:
    case(op, lambda x: f(x, -1), (2, 3, 4))
    case(op, lambda x: f(x, -1), (3, 1))
    case(op, lambda x: f(x, -1), (0, 4))
    case(op, lambda x: f(x, -1), [[0.0, -INF, 1.0], [1000.0, 999.0, -1000.0], [-INF, -INF, 2.0], [-INF, -INF, -INF]])
labels = torch.tensor([1.0, 0.0, 3.0])
case("cross_entropy", lambda x: F.cross_entropy(x, labels.long(), reduction="none"), (3, 4), constants=[labels])
sure = torch.tensor([0.0, 1.0])
case("cross_entropy", lambda x: F.cross_entropy(x, sure.long(), reduction="none"), [[800.0, -800.0], [0.0, -INF]], constants=[sure])

for n, c, h, w, o, kh, kw, stride, padding in [
    (2, 3, 6, 5, 4, 3, 3, 1, 1), (1, 1, 5, 5, 1, 5, 5, 1, 0), (2, 2, 7, 8, 3, 3, 2, 2, 1), (1, 2, 4, 4, 2, 1, 1, 3, 0), (0, 2, 4, 4, 3, 3, 3, 1, 1), (1, 1, 2, 2, 1, 3, 3, 1, 2),
]:
    case("conv2d", lambda x, w, b: F.conv2d(x, w, b, stride=stride, padding=padding), (n, c, h, w), (o, c, kh, kw), (o,), sizes=[stride, padding])
TIES = [[[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 2.0, 0.0], [-1.0, -INF, 5.0, 5.0], [-INF, -1.0, 5.0, 5.0]]]
for size, stride, padding in [(2, 2, 0), (3, 2, 1), (2, 1, 1), (3, 3, 0)]:
    for x in [(1, 2, 5, 7), TIES]:
        case("max_pool", lambda x: F.max_pool2d(x, size, stride, padding), x, sizes=[size, stride, padding])
    side = stride * 2 + size - 2 * padding
    case("average_pool", lambda x: F.avg_pool2d(x, size, stride, padding), (1, 2, side, side), sizes=[size, stride, padding])
case("layer_norm", lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-5), (2, 3, 5), (5,), (5,))
case("layer_norm", lambda x, w, b: F.layer_norm(x, (1,), w, b, 1e-5), (3, 1), (1,), (1,))
case("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b, 1e-5), (0, 4), (4,), (4,))
for x, c in [((3, 4, 5, 2), 4), ((6, 3), 3), ((2, 3, 1), 3), ([[[1.0, 1.0], [2.0, 2.0]], [[1.0, 1.0], [3.0, -7.0]]], 2)]:
    case("batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), x, (c,), (c,))
mean, variance = torch.randn(3), torch.rand(3) + 0.1
for x in [(4, 3, 2), (1, 3), (0, 3, 2)]:
    case("batch_norm_by", lambda x, w, b: F.batch_norm(x, mean, variance, w, b), x, (3,), (3,), constants=[mean, variance])
batches = [torch.randn(4, 3, 2) * 2 + 1, torch.randn(5, 3, 2)]


def learned(x, w, b):
    """By the running moments of a layer that has seen two batches."""
    layer = torch.nn.BatchNorm1d(3)
    for batch in batches:
        layer(batch)
    return F.batch_norm(x, layer.running_mean, layer.running_var, w, b)


case("batch_norm_learned", learned, (2, 3, 2), (3,), (3,), constants=batches)

path = pathlib.Path(__file__).parent / "torch_ops.json"
lines = ",\n".join(json.dumps(c, separators=(",", ":"), allow_nan=False) for c in cases)
path.write_text(f"[\n{lines}\n]\n")
print(f"{len(cases)} cases, {path.stat().st_size} bytes, PyTorch {torch.__version__}")
