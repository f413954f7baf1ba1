#!/usr/bin/env python3
"""This library on the CPU beside PyTorch, candle and burn, in single precision: a table with ratios.

    python3 benches/peer/compare.py [--threads 2,1] [--rounds 4] [--runs 25] [--programs dood,torch,candle,burn]
    python3 benches/peer/compare.py --classify mnist:FOLDER [--threads 2] [--seeds 3]

Needs Python 3.9+ with torch, and cargo. The programs run in turns, several rounds, and the fastest time of
each line counts: so whatever else the machine does disturbs all of them alike, and as little as can be. Every line is forward, and
forward and backward with the gradients of all inputs; `classify step` is a whole update of the network of `examples/classify`, batch 64,
dropout and Adam included. That PyTorch, candle and burn compute the same is shown by sums over results and gradients, of the same
inputs; that this library does by `tests/torch_ops.rs`.

`--classify` trains the network of `examples/classify` and the same in PyTorch, on the 60,000 digits, three epochs each: how many test
digits are right, seconds of training, images per second.
"""
import argparse
import gzip
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "benches/peer/rust"
# A line, and how the names of its case in benches/ops.rs begin.
LINES = {"matmul 512": "matmul [512, 512]", "matmul 64x1024x1024": "matmul [64, 1024]", "conv2d 1-16": "conv2d 64x1x28x28",
         "conv2d 16-32": "conv2d 64x16x14x14", "max_pool": "max_pool [64, 16, 28, 28]", "softmax": "softmax", "classify step": None}
NAMES = {"dood": "dood", "torch": "PyTorch", "candle": "candle", "burn": "burn"}
BATCH, RATE = 64, 2e-3


def done(command, threads=None, folder=ROOT):
    """What a command prints."""
    environment = {**os.environ}
    if threads:
        environment |= {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def lines_of(program, threads, runs):
    """Lines of a program: name, milliseconds forward, forward and backward, and sums where it says them."""
    parsed = lambda text: [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if program == "dood":
        bench, common = ["cargo", "bench", "--quiet", "--bench"], ["--threads", str(threads), "--json"]
        names = "matmul,conv2d,max_pool,softmax"
        for found in parsed(done([*bench, "ops", "--", "--fastest", "--filter", names, *common], threads)):
            for name, case in LINES.items():
                if case and found["name"].startswith(case):
                    yield name, [found["forward_ms"], found["forward_ms"] + found["backward_ms"]], None
        for found in parsed(done([*bench, "step", "--", "--model", "classify", "--steps", "60", *common], threads)):
            yield "classify step", [found["fastest_ms"]] * 2, None
        return
    arguments = ["--threads", str(threads), "--runs", str(runs)]
    command = {"torch": [sys.executable, __file__, "--torch", *arguments]}.get(
        program, ["cargo", "run", "--quiet", "--release", "--", program, *arguments])
    for found in parsed(done(command, threads, ROOT if program == "torch" else PEERS)):
        yield found["name"], [found["forward_ms"], found["both_ms"]], found["sums"]


# ---- PyTorch --------------------------------------------------------------------------------------------------------------


def network():
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2),
                         nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(128, 10))


def in_torch(threads, runs):
    import numpy
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)

    def values(shape, key, scale=1.0):
        """As in rust/src/main.rs."""
        turns = numpy.arange(math.prod(shape)) * 0.6180339887498949 + key * 0.7548776662466928
        return torch.tensor((scale * (2 * (turns % 1) - 1)).astype(numpy.float32)).reshape(shape)

    def sums(tensors):
        flat = [x.detach().flatten().double() for x in tensors]
        return [[(x * values(x.shape, 9).double()).sum().item(), x.abs().sum().item()] for x in flat]

    def fastest(works):
        """Milliseconds of each of several works, which run one after the other, every one with what the one before has made."""
        best = [math.inf] * len(works)
        for run in range(runs + 1):
            made = None
            for i, work in enumerate(works):
                began = time.perf_counter()
                made = work(made)
                if run:  # The first fills caches.
                    best[i] = min(best[i], 1e3 * (time.perf_counter() - began))
        return best

    def say(name, forward, both, results):
        print(json.dumps({"name": name, "forward_ms": forward, "both_ms": both, "sums": sums(results)}))

    def line(name, f, *shapes):
        inputs = [values(shape, key) for key, shape in enumerate(shapes)]
        tracked = [x.clone().requires_grad_() for x in inputs]
        y = f(*tracked)
        results = [y, *torch.autograd.grad((y * y).sum(), tracked)]
        dy = torch.ones_like(y)
        with torch.no_grad():
            forward, = fastest([lambda _: f(*inputs)])
        both = sum(fastest([lambda _: f(*tracked), lambda y: torch.autograd.grad(y, tracked, dy)]))
        say(name, forward, both, results)

    conv = lambda x, w, b: F.conv2d(x, w, b, padding=1)
    line("matmul 512", torch.matmul, (512, 512), (512, 512))
    line("matmul 64x1024x1024", torch.matmul, (64, 1024), (1024, 1024))
    line("conv2d 1-16", conv, (BATCH, 1, 28, 28), (16, 1, 3, 3), (16,))
    line("conv2d 16-32", conv, (BATCH, 16, 14, 14), (32, 16, 3, 3), (32,))
    line("max_pool", lambda x: F.max_pool2d(x, 2), (BATCH, 16, 28, 28))
    line("softmax", lambda x: F.softmax(x, -1), (BATCH, 10, 1000))
    net = network()
    for key, (p, scale) in enumerate(zip(net.parameters(), [0.3, 0.3, 0.08, 0.08, 0.03, 0.03, 0.1, 0.1])):
        p.data = values(p.shape, key, scale)
    x, labels = values((BATCH, 1, 28, 28), 8), torch.arange(BATCH) % 10
    loss = F.cross_entropy(net.eval()(x), labels)
    results = [loss[None], *torch.autograd.grad(loss, list(net.parameters()))]
    net.train()
    adam = torch.optim.Adam(net.parameters(), RATE)

    def step(_):
        adam.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        adam.step()
        return loss.item()

    ms, = fastest([step])
    say("classify step", ms, ms, results)


def learn_in_torch(folder, seed, threads):
    """The training of `dood::eval::classifier`: the same batches, rates and epochs, and PyTorch's first parameters."""
    import torch
    import torch.nn.functional as F

    def read(name, header):
        data = gzip.decompress((folder / name).read_bytes())[header:]
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    images = {part: read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28) for part in ["train", "t10k"]}
    labels = {part: read(f"{part}-labels-idx1-ubyte.gz", 8).long() for part in images}
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net, count, epochs = network(), len(images["train"]), 3
    adam = torch.optim.Adam(net.parameters(), RATE)
    total = epochs * math.ceil(count / BATCH)
    factor = lambda update: min(1, update / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * update / total)))
    rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda done: factor(done + 1))
    began = time.perf_counter()
    for _ in range(epochs):
        for which in torch.randperm(count).split(BATCH):
            adam.zero_grad()
            F.cross_entropy(net(images["train"][which] / 255), labels["train"][which]).backward()
            adam.step()
            rates.step()
    seconds = time.perf_counter() - began
    net.eval()
    with torch.no_grad():
        right = sum((net(x / 255).argmax(1) == wanted).sum().item() for x, wanted in
                    zip(images["t10k"].split(250), labels["t10k"].split(250)))
    return {"accuracy": {"share": right / len(labels["t10k"])}, "seconds": seconds, "images_per_second": epochs * count / seconds}


# ---- The tables ------------------------------------------------------------------------------------------------------------


def load():
    return f"load {os.getloadavg()[0]:.2f}"


def check(name, sums):
    """That all programs have computed the same."""
    (first, of_first), *others = sums.items()
    for other, of_other in others:
        for a, b in zip(of_first, of_other, strict=True):
            if not all(abs(x - y) <= 1e-4 * a[1] for x, y in zip(a, b)):
                sys.exit(f"{name}: {first} and {other} compute different things, sums are {a} and {b}")


def table(programs, threads, rounds, runs):
    before, best, sums = load(), {}, {}
    for _ in range(rounds):
        for program in programs:
            for name, times, found in lines_of(program, threads, runs):
                old = best.get((name, program), times)
                best[name, program] = list(map(min, old, times))
                if found:
                    sums.setdefault(name, {})[program] = found
    for name, found in sums.items():
        check(name, found)
    # What this library is held against: columns, and which programs the fastest of counts.
    peers = {"PyTorch / dood": ["torch"], "best of Rust / dood": ["candle", "burn"]} if "dood" in programs else {}
    peers = {head: there for head, names in peers.items() if (there := [p for p in names if p in programs])}
    print(f"\n{threads} thread{'s' * (threads > 1)}; {before} before, {load()} after:\n")
    heads = [f"ms, {threads} thread{'s' * (threads > 1)}", *(NAMES[p] for p in programs), *peers]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for name in LINES:
        for way in range(1 if LINES[name] is None else 2):
            ms = {program: best[name, program][way] for program in programs}
            row = [name if LINES[name] is None else f"{name}, {['forward', 'forward and backward'][way]}"]
            row += [f"{ms[program]:.2f}" for program in programs]
            row += [f"{min(ms[p] for p in names) / ms['dood']:.2f}" for names in peers.values()]
            print("| " + " | ".join(row) + " |", flush=True)


def classify(source, threads, seeds):
    print(f"\n| classify, {threads} threads | right of 10,000 | seconds | images/s | load before |\n|" + " --- |" * 5)
    folder = pathlib.Path(source.removeprefix("mnist:"))
    for seed in range(seeds):
        for program in ["dood", "torch"]:
            before = load()
            if program == "torch":
                found = json.loads(done([sys.executable, __file__, "--learn", str(folder), "--seeds", str(seed), "--threads",
                                         str(threads)], threads))
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    out = pathlib.Path(scratch) / "classify"
                    done(["cargo", "run", "--quiet", "--release", "--example", "classify", "--", "--data", source, "--seed", str(seed),
                          "--device", "cpu", "--out", str(out)], threads)
                    found = json.loads(out.with_suffix(".json").read_text())
            print(f"| {NAMES[program]}, seed {seed} | {100 * found['accuracy']['share']:.2f} % | {found['seconds']:.1f} | "
                  f"{found['images_per_second']:,.0f} | {before.removeprefix('load ')} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", help="threads of every program, one table for each number; with 1 they disturb each other least "
                        "[2,1; of --classify 2]")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=25, help="runs of each line in a round [25]")
    parser.add_argument("--programs", default=",".join(NAMES))
    parser.add_argument("--classify", metavar="mnist:FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--learn", type=pathlib.Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    threads = [int(n) for n in (a.threads or ("2" if a.classify else "2,1")).split(",")]
    if a.torch:
        return in_torch(threads[0], a.runs)
    if a.learn:
        return print(json.dumps(learn_in_torch(a.learn, a.seeds, threads[0])))
    if a.classify:
        done(["cargo", "build", "--release", "--example", "classify"])
        return [classify(a.classify, n, a.seeds) for n in threads]
    programs = a.programs.split(",")
    # Built before anything is timed.
    if "dood" in programs:
        done(["cargo", "bench", "--no-run", "--bench", "ops", "--bench", "step"])
    if {"candle", "burn"} & {*programs}:
        done(["cargo", "build", "--release"], folder=PEERS)
    for n in threads:
        table(programs, n, a.rounds, a.runs)


if __name__ == "__main__":
    main()
