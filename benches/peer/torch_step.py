#!/usr/bin/env python3
"""The same training step in PyTorch, to compare with `cargo bench --bench step`. Needs Python 3.9+ and torch, nothing else.

    python3 benches/peer/torch_step.py --device cuda --batch 64 --mode graph --raster separable
    python3 benches/peer/torch_step.py --check tests/fixtures/step_tiny_warp.safetensors

The structure is that of the authors' program: every step of every image is computed, and every call of a CNN is a call of its own
with a dropout mask of its own, 42 in all. `--raster naive` evaluates all pixels against all samples of a curve, as they do;
`--raster separable` is the same function as a product of rows and columns. Section numbers are those of docs/model.md.

`--check` runs a stored step in double precision and compares loss terms and all gradients; that is how this file is known to be right.
"""
import argparse
import json
import math
import struct
import sys
import time

import torch
import torch.nn.functional as F

PAPER = {"image": 50, "conv1": 8, "conv2": 16, "features": 256, "hidden": 256, "points": 5, "samples": 100, "components": 40,
         "strokes": 6, "baseline_hidden": 256, "baseline_layers": 3, "beta": 4.0, "placement": "warp"}
EPSILON = 2.0 ** -23


class Sizes:
    def __init__(self, **sizes):
        self.__dict__.update(sizes)


# ---- Parameters (sections 2.3 to 2.6) ---------------------------------------------------------------------------------


def shapes(c):
    """Name -> (shape, fan-in)."""
    found = {}

    def linear(name, inputs, outputs):
        found[name + ".weight"] = ((outputs, inputs), inputs)
        found[name + ".bias"] = ((outputs,), inputs)

    def mlp(name, inputs, outputs, hidden=c.hidden, layers=2):
        widths = [inputs] + [hidden] * layers + [outputs]
        for i in range(layers + 1):
            linear(f"{name}.linear{i}", widths[i], widths[i + 1])

    def gru(name, inputs):
        for part, shape in (("weight_ih", (3 * c.hidden, inputs)), ("weight_hh", (3 * c.hidden, c.hidden)),
                            ("bias_ih", (3 * c.hidden,)), ("bias_hh", (3 * c.hidden,))):
            found[f"{name}.{part}"] = (shape, c.hidden)

    for cnn in ("image_cnn", "residual_cnn"):
        for conv, outputs, inputs in (("conv1", c.conv1, 1), ("conv2", c.conv2, c.conv1)):
            found[f"{cnn}.{conv}.weight"] = ((outputs, inputs, 3, 3), 9 * inputs)
            found[f"{cnn}.{conv}.bias"] = ((outputs,), 9 * inputs)
        linear(f"{cnn}.linear0", c.conv2 * (c.image - 4) ** 2, c.features)
        linear(f"{cnn}.linear1", c.features, c.features)
    f, h, what, k = c.features, c.hidden, 2 * c.points, c.components
    gru("layout_gru", 4 + f)
    gru("stroke_gru", what + f)
    gru("baseline_gru", 2 * f + 1 + 4 + what)
    mlp("onoff_posterior", f + 1, 1)
    mlp("layout_posterior", h + 2 * f + 1, 9)
    mlp("canvas_slope", h + 2 * f + 1, 1)
    mlp("stroke_posterior", h + 2 * f, 5 * c.points)
    mlp("pen", h + 2 * f + 4, 2)
    mlp("onoff_prior", f, 1)
    mlp("layout_prior", h, 10 * k)
    mlp("stroke_prior", h + 4 + f, 6 * c.points * k)
    mlp("baseline", h, 1, c.baseline_hidden, c.baseline_layers)
    found["likelihood.raw_scale"] = ((c.image, c.image), 1)
    return found


def fresh(c, device):
    """Initial values of section 2.6."""
    k, j = c.components, c.points
    biases = {
        "onoff_posterior": [2.0], "layout_posterior": [0, 0, 6, 0] + [-4] * 4 + [0], "canvas_slope": [-1.0], "pen": [-2.0, 2.0],
        "onoff_prior": [1.0], "layout_prior": [4] + [-4] * (k - 1) + [0, 0, 4, 0] * k + [-4] * 4 * k + [0] * k,
        "stroke_prior": [4] * j + [-4] * (j * (k - 1)) + [0] * (2 * j * k) + [-1.386] * (2 * j * k) + [0] * (j * k),
    }
    values = {}
    for name, (shape, fan_in) in shapes(c).items():
        values[name] = torch.empty(shape).uniform_(-1.0, 1.0) / math.sqrt(fan_in)
    for name, bias in biases.items():
        values[name + ".linear2.weight"].zero_()
        values[name + ".linear2.bias"].copy_(torch.tensor(bias, dtype=torch.float32))
    for name, first in (("layout_prior", slice(k + 4, 5 * k)), ("stroke_prior", slice(j * k + 2 * j, 3 * j * k))):
        means = values[name + ".linear2.bias"][first]
        means += 0.001 * torch.randn_like(means)
    values["likelihood.raw_scale"].zero_()
    return {name: value.to(device).requires_grad_() for name, value in values.items()}


# ---- Pieces -----------------------------------------------------------------------------------------------------------


def sig(x, low, high):
    return low + (high - low) * torch.sigmoid(x)


def gaussian(z, mean, std, cor):
    """Log density of [..., d] with one Cholesky entry between the first two coordinates (section 2.5)."""
    e = (z - mean) / std
    second = e[..., 1:2] - cor.unsqueeze(-1) * e[..., 0:1] / std[..., 1:2]
    e = torch.cat([e[..., 0:1], second, e[..., 2:]], -1)
    return -0.5 * z.shape[-1] * math.log(2 * math.pi) - std.log().sum(-1) - 0.5 * e.square().sum(-1)


def sample(mean, std, cor, eps):
    """z = mean + L eps."""
    mixed = torch.zeros_like(mean)
    mixed = torch.cat([mixed[..., 0:1], cor.unsqueeze(-1) * eps[..., 0:1], mixed[..., 2:]], -1)
    return mean + std * eps + mixed


def layout_means(raw):
    return torch.cat([sig(raw[..., 0:2], -0.8, 0.8), sig(raw[..., 2:3], 0.25, 1.0), sig(raw[..., 3:4], -math.pi / 4, math.pi / 4)], -1)


def bernoulli(on, p):
    p = p.clamp(EPSILON, 1 - EPSILON)
    return on * p.log() + (1 - on) * (1 - p).log()


def affine(layout):
    """[B, 2, 3] of section 5."""
    x, y, scale, angle = layout.unbind(-1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], -2)


def inverse_affine(layout):
    x, y, scale, angle = layout.unbind(-1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    return torch.stack([torch.stack([cos, sin, -(cos * x + sin * y)], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)], -2)


def look(image, matrix):
    """The image [B, H, W] seen through the matrix: corner-aligned, bilinear, 0 outside."""
    image = image.unsqueeze(1)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=True)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True).squeeze(1)


class Model:
    def __init__(self, c, params, raster):
        self.c, self.p, self.raster = c, params, {"naive": self.naive, "separable": self.separable}[raster]
        u = torch.linspace(0, 1, c.samples, dtype=torch.float64)
        n = c.points - 1
        basis = torch.stack([math.comb(n, j) * (1 - u) ** (n - j) * u ** j for j in range(c.points)], -1)
        like = params["likelihood.raw_scale"]
        self.basis = basis.to(like)
        self.grid = torch.arange(c.image, device=like.device, dtype=like.dtype) / c.image

    def linear(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def mlp(self, name, *inputs, layers=2):
        x = torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0]
        for i in range(layers):
            x = torch.tanh(self.linear(f"{name}.linear{i}", x))
        return self.linear(f"{name}.linear{layers}", x)

    def gru(self, name, inputs, state):
        weights = (self.p[f"{name}.{part}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return torch.gru_cell(torch.cat(inputs, -1), state, *weights)

    def embed(self, cnn, image, mask):
        """Section 2.3. `mask`: a tensor that keeps where it is 1, True to draw one, None for evaluation."""
        x = image.unsqueeze(1)
        for conv in ("conv1", "conv2"):
            x = F.relu(F.conv2d(x, self.p[f"{cnn}.{conv}.weight"], self.p[f"{cnn}.{conv}.bias"]))
        if mask is True:
            x = F.dropout(x, 0.5)
        elif mask is not None:
            x = 2 * x * mask
        return self.linear(f"{cnn}.linear1", torch.tanh(self.linear(f"{cnn}.linear0", x.flatten(1))))

    # ---- Renderer (section 6) ----

    def naive(self, curve, sigma):
        dx = curve[:, :, 0, None] - self.grid
        dy = curve[:, :, 1, None] - self.grid
        squares = dx.square()[:, :, None, :] + dy.square()[:, :, :, None]
        return torch.exp(-squares / (2 * sigma.square())[:, None, None, None]).sum(1)

    def separable(self, curve, sigma):
        scale = -1 / (2 * sigma.square())[:, None, None]
        ex = torch.exp((curve[:, :, 0, None] - self.grid).square() * scale)
        ey = torch.exp((curve[:, :, 1, None] - self.grid).square() * scale)
        return ey.transpose(1, 2) @ ex

    def stroke_image(self, points, layout, pen, on):
        sigma, slope = pen.unbind(-1)
        if self.c.placement == "points":
            matrix = affine(layout)
            points = ((2 * points - 1) @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]) / 2 + 0.5
        image = self.raster(self.basis @ points, sigma) * on[:, None, None]
        if self.c.placement == "warp":
            image = look(image, inverse_affine(layout))
        largest = image.detach().amax((1, 2), keepdim=True)
        image = image / torch.where(largest >= 1e-4, largest, torch.ones_like(largest))
        return torch.tanh(image / slope[:, None, None])

    # ---- Prior (section 3) ----

    def layout_prior(self, state, z):
        k = self.c.components
        logits, means, stds, cor = self.mlp("layout_prior", state).split([k, 4 * k, 4 * k, k], -1)
        each = gaussian(z.unsqueeze(-2), layout_means(means.unflatten(-1, (k, 4))), sig(stds, 1e-9, 1.0).unflatten(-1, (k, 4)),
                        sig(cor, -1.0, 1.0))
        return torch.logsumexp(logits.log_softmax(-1) + each, -1)

    def stroke_prior(self, inputs, z):
        j, k = self.c.points, self.c.components
        logits, means, stds, cor = self.mlp("stroke_prior", *inputs).split([j * k, 2 * j * k, 2 * j * k, j * k], -1)
        each = gaussian(z.unsqueeze(-2), sig(means, -0.2, 1.2).unflatten(-1, (j, k, 2)),
                        (torch.sigmoid(stds) + 1e-9).unflatten(-1, (j, k, 2)), sig(cor, -1.0, 1.0).unflatten(-1, (j, k)))
        return torch.logsumexp(logits.unflatten(-1, (j, k)).log_softmax(-1) + each, -1).sum(-1)

    # ---- A step of training (sections 4, 7 and 8) ----

    def loss(self, x, noise, running, masks=None, first=False):
        """The loss, its parts, and the new running mean and variance. `masks`: name of a call -> [T, B, ...]; True to draw them."""
        c, batch = self.c, x.shape[0]
        mask = lambda call, t: masks[call][t] if isinstance(masks, dict) else masks
        zeros = lambda width: x.new_zeros(batch, width)
        on, layout, stroke = x.new_ones(batch), zeros(4), zeros(2 * c.points)
        state, pen_state, judge = zeros(c.hidden), zeros(c.hidden), zeros(c.hidden)
        canvas, drawn, ink = torch.zeros_like(x), 0.0, x.sum((1, 2))
        kl, score, baseline, live = [], [], [], []
        for t in range(c.strokes):
            before, residual = on, (x - canvas).detach()
            e_x, e_c = self.embed("image_cnn", x, mask("target", t)), self.embed("image_cnn", canvas, mask("canvas", t))
            e_d = self.embed("residual_cnn", residual, mask("residual", t))
            lowest = torch.finfo(torch.float32).min
            ratio = torch.nan_to_num(residual.sum((1, 2)) / ink, nan=0.0, posinf=-lowest, neginf=lowest).unsqueeze(-1)
            judge_inputs = [e_x, before.unsqueeze(-1), layout, stroke, e_c]
            state = self.gru("layout_gru", [layout, e_c], state)
            pen_state = self.gru("stroke_gru", [stroke, e_c], pen_state)

            p = (sig(self.mlp("onoff_posterior", e_d, ratio).squeeze(-1), 1e-9, 1 - 1e-9) * before).clamp(1e-12, 1 - 1e-12)
            on = (noise["onoff_u"][t] < p).to(x.dtype) * before
            log_on = bernoulli(on, p) * before

            raw = self.mlp("layout_posterior", state, e_x, e_d, ratio)
            parts = layout_means(raw[:, 0:4]), sig(raw[:, 4:8], 1e-9, 1.0), sig(raw[:, 8], -1.0, 1.0)
            if t == 0:
                canvas_slope = sig(self.mlp("canvas_slope", state, e_x, e_d, ratio), 0.1, 1.5).unsqueeze(-1)
            layout = sample(*parts, noise["layout_eps"][t])
            log_layout = gaussian(layout, *parts)
            matrix = affine(layout)

            e_gx = self.embed("image_cnn", look(x, matrix), mask("target_glimpse", t))
            e_gd = self.embed("residual_cnn", look(residual, matrix), mask("residual_glimpse", t))
            j = c.points
            mean, std, cor = self.mlp("stroke_posterior", pen_state, e_gx, e_gd).split([2 * j, 2 * j, j], -1)
            parts = sig(mean, -0.2, 1.2).unflatten(-1, (j, 2)), (torch.sigmoid(std) + 1e-9).unflatten(-1, (j, 2)), sig(cor, -1.0, 1.0)
            points = sample(*parts, noise["stroke_eps"][t])
            log_stroke = gaussian(points, *parts).sum(-1)
            pen = self.mlp("pen", pen_state, e_gx, e_gd, layout)
            thinnest = 0.005 if c.placement == "points" else 0.01
            pen = torch.stack([sig(pen[:, 0], thinnest, 0.04), sig(pen[:, 1], 0.1, 0.9)], -1)

            judge = self.gru("baseline_gru", [v.detach() for v in judge_inputs], judge)
            baseline.append(self.mlp("baseline", judge, layers=c.baseline_layers).squeeze(-1) * before)

            p = sig(self.mlp("onoff_prior", self.embed("image_cnn", canvas, mask("onoff_prior", t))).squeeze(-1), 1e-9, 1 - 1e-9)
            e_gc = self.embed("image_cnn", look(canvas, matrix), mask("canvas_glimpse", t))
            stroke = points.flatten(1)
            k = log_on - bernoulli(on, p) * before + on * (log_layout - self.layout_prior(state, layout))
            kl.append(k + on * (log_stroke - self.stroke_prior([pen_state, layout, e_gc], points)))
            score.append(log_on)
            live.append(before)

            drawn = drawn + self.stroke_image(points, layout, pen, on)
            canvas = torch.tanh(drawn / canvas_slope)
            if t + 1 < c.strokes:
                canvas = canvas.detach()

        kl, score, baseline, live = (torch.stack(v) for v in (kl, score, baseline, live))
        scale = sig(self.p["likelihood.raw_scale"], 0.01, 1.0)
        likelihood = (-(2 * scale).log() - (x - canvas).abs() / scale).sum((1, 2))
        elbo = likelihood - kl.sum(0)
        with torch.no_grad():
            signal = live * (kl.flip(0).cumsum(0).flip(0) - likelihood / c.beta)
            raw = signal - baseline
            count = live.sum()
            mean = (live * raw).sum() / count
            variance = (live * (raw - mean).square()).sum() / count
            now = torch.stack([mean, variance])
            running = 0.8 * (now if first else running) + 0.2 * now
            advantage = (raw - running[0]) / running[1].sqrt().clamp(min=1.0)
        score_term = (live * advantage * score).sum(0)
        baseline_term = (live * (baseline - signal).square()).sum(0)
        loss = (score_term - elbo + baseline_term).mean()
        parts = {"loss": loss, "elbo": elbo, "log_likelihood": likelihood, "score_term": score_term, "baseline_term": baseline_term,
                 "kl": kl, "signal": signal, "running_mean": running[0], "running_var": running[1]}
        return loss, parts, running


# ---- Against a stored step ----------------------------------------------------------------------------------------------


def read(path):
    """Tensors and metadata of a .safetensors file."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
    with open(path, "rb") as file:
        data = bytearray(file.read())
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + length].decode())
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        kind, (begin, end) = kinds[entry["dtype"]], entry["data_offsets"]
        count = (end - begin) // torch.empty((), dtype=kind).element_size()
        tensors[name] = torch.frombuffer(data, dtype=kind, count=count, offset=8 + length + begin).reshape(entry["shape"]).clone()
    return tensors, metadata


def check(path, raster):
    tensors, metadata = read(path)
    c = Sizes(**json.loads(metadata["config"]))
    given = lambda prefix: {name[len(prefix):]: t for name, t in tensors.items() if name.startswith(prefix)}
    worst, compared, missing = (0.0, ""), 0, []
    for case in json.loads(metadata["cases"]):
        params = {name: value.clone().requires_grad_() for name, value in given("param.").items()}
        if {n: tuple(p.shape) for n, p in params.items()} != {n: s for n, (s, _) in shapes(c).items()}:
            sys.exit(f"{path}: its parameters are not those of the full model")
        masks = {name: mask.double() for name, mask in given("mask.").items()} if case == "dropout" else None
        noise = given("input.")
        model = Model(c, params, raster)
        loss, parts, _ = model.loss(noise["image"], noise, noise["running"], masks, metadata["iteration"] == "0")
        loss.backward()
        found = {f"{case}.loss.{name}": value for name, value in parts.items()}
        found.update({f"{case}.grad.{name}": torch.zeros_like(p) if p.grad is None else p.grad for name, p in params.items()})
        for name, value in found.items():
            if name not in tensors:
                missing.append(name)
                continue
            error = ((value.detach() - tensors[name]).abs().max() / tensors[name].abs().max().clamp(min=1e-12)).item()
            # An error that is not a number is the worst of all.
            worst = max(worst, (error if error == error else math.inf, name))
            compared += 1
    right = compared > 0 and not missing and worst[0] < 1e-9
    print(json.dumps({"check": path, "raster": raster, "compared": compared, "worst_error": worst[0], "in": worst[1], "right": right}))
    sys.exit(0 if right else 1)


# ---- The benchmark --------------------------------------------------------------------------------------------------------


def bench(a):
    torch.manual_seed(1)
    device, c = torch.device(a.device), Sizes(**{**PAPER, "placement": a.placement})
    on_gpu = device.type == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.math == "tf32"
    torch.backends.cudnn.benchmark = True
    if a.threads:
        torch.set_num_threads(a.threads)
    params = fresh(c, device)
    judge = [p for name, p in params.items() if name.startswith(("baseline_gru.", "baseline."))]
    rest = [p for name, p in params.items() if not name.startswith(("baseline_gru.", "baseline."))]
    adam = torch.optim.Adam([{"params": rest, "lr": 1e-4}, {"params": judge, "lr": 1e-3}], capturable=on_gpu)
    model = Model(c, params, a.raster)
    compute = torch.compile(model.loss) if a.mode == "compile" else model.loss
    x = (torch.randn(a.batch, c.image, c.image, device=device) - 1).clamp(0, 1)
    running = torch.tensor([0.0, 1.0], device=device)

    def step():
        shape = (c.strokes, a.batch)
        noise = {"onoff_u": torch.rand(shape, device=device), "layout_eps": torch.randn(*shape, 4, device=device),
                 "stroke_eps": torch.randn(*shape, c.points, 2, device=device)}
        adam.zero_grad(set_to_none=True)
        loss, _, updated = compute(x, noise, running, True)
        loss.backward()
        adam.step()
        running.copy_(updated)
        return loss

    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    began = time.perf_counter()
    if a.mode == "graph":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        adam.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            captured = step()

        def work():
            graph.replay()
            return captured
    else:
        work = step
    for _ in range(3 if on_gpu else 1):
        loss = work()
    wait()
    warm = time.perf_counter() - began
    # On a GPU, steps between two looks at the clock, as in benches/step.rs.
    at_once, times = (8 if on_gpu else 1), []
    for _ in range(max(1, a.steps // at_once)):
        began = time.perf_counter()
        for _ in range(at_once):
            loss = work()
        wait()
        times.append(1e3 * (time.perf_counter() - began) / at_once)
    if not math.isfinite(loss.item()):
        sys.exit("the loss is not finite")
    times.sort()
    median = times[len(times) // 2]
    print(json.dumps({
        "bench": "step", "program": f"torch {torch.__version__}", "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "mode": a.mode, "raster": a.raster, "placement": a.placement, "math": a.math, "batch": a.batch, "ms": median,
        "fastest_ms": times[0], "images_per_second": 1e3 * a.batch / median, "warm_up_s": warm,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None, "loss": loss.item(),
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=None, help="steps to time [64, on a CPU 3]")
    parser.add_argument("--mode", choices=["eager", "compile", "graph"], default="eager")
    parser.add_argument("--raster", choices=["naive", "separable"], default="naive")
    parser.add_argument("--placement", choices=["warp", "points"], default="warp")
    parser.add_argument("--math", choices=["f32", "tf32"], default="f32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--check", metavar="FILE", help="compare with a stored step instead")
    a = parser.parse_args()
    if a.check:
        check(a.check, a.raster)
    if a.mode == "graph" and not a.device.startswith("cuda"):
        parser.error("--mode graph needs a GPU")
    a.steps = a.steps or (64 if a.device.startswith("cuda") else 3)
    bench(a)


if __name__ == "__main__":
    main()
