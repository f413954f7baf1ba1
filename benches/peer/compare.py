#!/usr/bin/env python3
"""This library beside PyTorch on the CPU, in single precision: a table with ratios.

    python3 benches/peer/compare.py [--rounds 5] [--threads 2]

Needs Python 3.9+ with torch, and cargo. The programs run in turns, several rounds, and the fastest time of
each line counts: so whatever else the machine does disturbs all of them alike, and as little as can be. Every line is forward, and
forward and backward with the gradients of all inputs; `classify step` is a whole update of the network of `examples/classify`, batch 64,
dropout and Adam included.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A line, and how the names of its case in benches/ops.rs begin.
LINES = {"matmul 512": "matmul [512, 512]", "matmul 64x1024x1024": "matmul [64, 1024]", "conv2d 1-16": "conv2d 64x1x28x28",
         "conv2d 16-32": "conv2d 64x16x14x14", "max_pool": "max_pool [64, 16, 28, 28]", "softmax": "softmax", "classify step": None}


def said(command, threads):
    """The JSON lines that a command prints."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def dood(threads):
    bench = ["cargo", "bench", "--quiet", "--bench"]
    common = ["--threads", str(threads), "--json"]
    for found in said([*bench, "ops", "--", "--fastest", "--filter", "matmul,conv2d,max_pool,softmax", *common], threads):
        for name, case in LINES.items():
            if case and found["name"].startswith(case):
                yield name, found["forward_ms"], found["forward_ms"] + found["backward_ms"]
    for found in said([*bench, "step", "--", "--model", "classify", "--steps", "60", *common], threads):
        yield "classify step", found["fastest_ms"], found["fastest_ms"]


def torch(threads, runs):
    for found in said([sys.executable, __file__, "--torch", "--threads", str(threads), "--runs", str(runs)], threads):
        yield found["name"], found["forward_ms"], found["both_ms"]


# ---- PyTorch --------------------------------------------------------------------------------------------------------------


def fastest(runs, work):
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


def in_torch(threads, runs):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    draw = lambda *shape: torch.randn(shape)
    n = 64

    def line(name, f, *inputs):
        with torch.no_grad():
            forward = fastest(runs, lambda: f(*inputs))
        tracked = [x.clone().requires_grad_() for x in inputs]
        dy = torch.ones_like(f(*inputs))
        both = fastest(runs, lambda: torch.autograd.grad(f(*tracked), tracked, dy))
        print(json.dumps({"name": name, "forward_ms": forward, "both_ms": both}))

    conv = lambda x, w, b: F.conv2d(x, w, b, padding=1)
    line("matmul 512", torch.matmul, draw(512, 512), draw(512, 512))
    line("matmul 64x1024x1024", torch.matmul, draw(64, 1024), draw(1024, 1024))
    line("conv2d 1-16", conv, draw(n, 1, 28, 28), draw(16, 1, 3, 3), draw(16))
    line("conv2d 16-32", conv, draw(n, 16, 14, 14), draw(32, 16, 3, 3), draw(32))
    line("max_pool", lambda x: F.max_pool2d(x, 2), draw(n, 16, 28, 28))
    line("softmax", lambda x: F.softmax(x, -1), draw(n, 10, 1000))
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Dropout(0.5),
                        nn.Linear(128, 10))
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    x, labels = draw(n, 1, 28, 28), torch.arange(n) % 10

    def step():
        adam.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        adam.step()
        return loss.item()

    ms = fastest(runs, step)
    print(json.dumps({"name": "classify step", "forward_ms": ms, "both_ms": ms}))


# ---- The table -------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads of every program; with 1 they disturb each other least [2]")
    parser.add_argument("--runs", type=int, default=40, help="runs of each line in a round [40]")
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.torch:
        return in_torch(a.threads, a.runs)
    best = {}
    programs = ["dood", "torch"]
    for _ in range(a.rounds):
        for program in programs:
            for name, forward, both in dood(a.threads) if program == "dood" else torch(a.threads, a.runs):
                old = best.get((name, program), (float("inf"), float("inf")))
                best[name, program] = (min(old[0], forward), min(old[1], both))
    print("| ms, fastest | dood | PyTorch | PyTorch / dood |\n| --- | --- | --- | --- |")
    for name in LINES:
        for way in range(1 if LINES[name] is None else 2):
            ms = [best[name, program][way] for program in programs]
            label = name if LINES[name] is None else f"{name}, {['forward', 'forward and backward'][way]}"
            print(f"| {label} | {ms[0]:.2f} | {ms[1]:.2f} | {ms[1] / ms[0]:.2f} |")


if __name__ == "__main__":
    main()
