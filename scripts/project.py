#!/usr/bin/env python3
"""How long a captured step should take on a card, from the list of its nodes.

    scripts/project.py NODES... [--math f32|tf32|bf16] [--chain] [--kernels] [--json]

NODES is what the stand-in for the driver writes with STAND_IN_NODES (tests/stand_in_driver); scripts/project.sh makes the lists and calls
this. A projection is arithmetic on the list, no measurement: it tells the sign and the size of a change.

Every node gets a time that it would take alone and the share of the card that it fills meanwhile. Nodes then start as their edges allow,
the urgent first; where those that run want more than one card, the less urgent get what is left. Times say where they come from:

    measured   on one H200, commit fcfe2c9 (benches/results/2026-11-26-h200.md): with Nsight Compute, kernel by kernel
    fitted     so that the steps measured there come out. With 64 images, measured and projected ms:
               published sizes, f32 8.47 8.35, tf32 6.28 6.26, bf16 5.98 5.97, f32 as a chain 14.2 14.4;
               `hour`, with half the weight, f32 2.91 2.81, tf32 2.63 2.64, bf16 2.54 2.63.
               What was not fitted comes out shorter than it is: 17.4 instead of 18.3 ms for 256 images of the published sizes in
               tf32, but 3.7 instead of 5.5 for 256 of `hour` and 9.2 instead of 17.6 for 1,024.
    estimated  from instructions, bytes and rates of the card
"""
import argparse
import collections
import heapq
import json
import math

# ---- The card ----------------------------------------------------------------------------------------------------------------

PROCESSORS = 132
THREADS = 1024  # of them that a processor keeps busy, of kernels with few registers
MEMORY = 3.6e6  # bytes/us; estimated, three quarters of what an H200 is sold with
CACHE = 5.5e6  # bytes/us from the second-level cache; estimated
# us from the end of a node to the start of one that waits for it, in a graph with branches: fitted, so it bears what else is not known of how
# graphs are run; in a straight line, where the 14.2 ms of a step captured as a chain leave so much.
BEFORE = 3.1
IN_A_ROW = 0.7
START = 0.57  # us from one start to the next, anywhere on the card; fitted
AWAKE = 0.66  # of a time of Nsight Compute, which holds the clock down and empties the caches, what is left in a step; fitted

# Operations/us of the wide layer: forward, inputs, weights. Fitted in their sum, apart by counts of instructions.
WIDE = {"f32": (28.0e6, 28.0e6, 26.0e6), "tf32": (43.5e6, 51.5e6, 39.0e6), "bf16": (48.0e6, 59.0e6, 42.0e6)}
# us of the two convolutions for 64 images of 50x50: forward (23 measured in f32, alone), inputs, weights. Fitted, weakly.
CONV = {"f32": (14.0, 28.0, 24.0), "tf32": (12.5, 25.0, 21.0), "bf16": (12.5, 25.0, 21.0)}
# us of a stage of a small product, 64 inner elements: measured in f32 (9.7 for four of them and all around them), others estimated.
STAGE = {"f32": 1.85, "tf32": 1.6, "bf16": 1.6}
# The same of 128 inner elements for a thin tile, which has half as much to multiply and as much to wait for; estimated.
THIN_STAGE = {"f32": 1.5, "tf32": 1.35, "bf16": 1.35}
AROUND = 2.3

# us of kernels whose time hardly depends on sizes; measured alone, but for those that say estimated.
ALONE = {
    "stn_fwd": 4.2,
    "render_stroke_fwd": 12.6,
    "stn_bwd": 7.0,  # estimated
    "render_stroke_bwd": 26.0,  # estimated
    "linear_undo": 5.0,  # estimated
    "advantage": 8.0,  # estimated
    "totals": 4.0,  # estimated
    "verdict": 4.5,  # estimated
    "residual_ratio": 4.0,  # estimated
    "image_logpdf_bwd": 5.5,  # estimated
    "mixture_fwd": 4.4,  # estimated
    "mixture_bwd": 4.4,  # estimated
    "conv_pair_sum": 3.6,  # estimated
}
SMALLEST = 2.6  # us of any other kernel alone: 2.4 to 3.4 measured


class Node:
    def __init__(self, line):
        self.after = line["after"]
        self.urgency = -line["priority"]
        self.kernel = line.get("kernel") or next((what for what in ("copy", "fill") if what in line), "nothing")
        self.bytes = line.get("copy", line.get("fill", 0))
        self.grid = line.get("grid", [1, 1, 1])
        self.blocks = math.prod(self.grid)
        self.threads = line.get("threads", 1)
        self.shared = line.get("shared", 0)
        self.numbers = line.get("numbers", [])


def spread(node):
    """The share of the card that its threads fill."""
    return min(1.0, max(0.005, node.blocks * node.threads / (PROCESSORS * THREADS)))


def rounds(node, resident=None):
    """How many times the card has to be filled with its blocks, at least once; `resident` of them fit on a processor."""
    fit = min(32, 2048 // max(32, node.threads), (227 << 10) // max(1, node.shared))
    return max(1.0, node.blocks / (PROCESSORS * max(1, min(fit, resident or fit))))


def waves(blocks, at_once=2 * PROCESSORS):
    """How much longer a launch takes, two blocks to a processor, than if its blocks were a whole number of waves: the last ones run alone,
    faster, and leave room for others."""
    full, rest = divmod(blocks, at_once)
    if not full or not rest:
        return 1.0
    return (full + max(0.45, rest / at_once)) / (blocks / at_once)


def wide(node, rate, images, calls, inputs, outputs, moved):
    longer = waves(node.blocks)
    work = 2 * images * calls * inputs * outputs / rate * longer
    return 2.5 + max(work, moved / MEMORY), 0.95 / longer


def cost(node, math_mode):
    """us alone, share of the card."""
    name, n = node.kernel, node.numbers
    if name == "copy":
        return 1.5 + 2 * node.bytes / MEMORY, 0.01 if node.bytes < 1e6 else 0.6
    if name == "fill" and not node.numbers:
        return 1.5 + node.bytes / MEMORY, 0.01 if node.bytes < 1e6 else 0.6
    if name == "nothing":
        return 0.0, 0.005
    if name in ("dropout_linear_fwd_large", "dropout_linear_fwd_small"):
        images, calls, inputs, outputs = n[1:5]
        return wide(node, WIDE[math_mode][0], images, calls, inputs, outputs, 4 * inputs * (outputs + images * calls))
    if name in ("dropout_linear_bwd_large", "dropout_linear_bwd_small"):
        images, inputs, outputs = n[-4:-1]
        calls = node.blocks / (-(-inputs // 128) * -(-images // 64))
        return wide(node, WIDE[math_mode][1], images, calls, inputs, outputs, 4 * inputs * (outputs + 1.3 * images * min(calls, 2)))
    if name in ("dropout_linear_weights_large", "dropout_linear_weights_small"):
        images, calls, inputs, outputs = n[-5:-1]
        return wide(node, WIDE[math_mode][2], images, calls, inputs, outputs, 4 * inputs * (2 * outputs + images * calls))
    if name.startswith(("conv_pair_fwd", "conv_pair_bwd")):
        height, width = n[-6:-4]
        which = 0 if "fwd" in name else 1 if "input" in name else 2
        part = height * width / 2500
        return AWAKE * 2.3 + CONV[math_mode][which] * part * rounds(node, 2), 0.55 + 0.3 * (which == 0)
    if name == "linear_fwd_small":
        return AWAKE * (AROUND + STAGE[math_mode] * -(-n[1] // 64)) * rounds(node, 2), min(1.0, node.blocks / (2 * PROCESSORS))
    if name == "linear_fwd_thin":
        return AWAKE * (AROUND + THIN_STAGE[math_mode] * -(-n[1] // 128)) * rounds(node, 3), min(1.0, node.blocks / (3 * PROCESSORS))
    if name in ("linear_bwd_small", "linear_bwd_thin"):
        rows, inputs, outputs = n[-5:-2]
        stages = -(-outputs // 64)
        tiles = -(-rows // 32) * -(-inputs // 32) * stages + 1.5 * -(-outputs // 32) * -(-inputs // 32)
        inner = STAGE[math_mode] * stages
        if name == "linear_bwd_thin":  # not less than the gradient of the weights takes, by small tiles
            inner = max(THIN_STAGE[math_mode] * -(-outputs // 128), STAGE[math_mode] * -(-rows // 64))
        return AWAKE * (AROUND + inner) * rounds(node, 3), min(1.0, tiles / (stages + 2) / 200)
    if name == "linear_finish":
        parts, rows, _, outputs = n[:4]
        if node.blocks < rows * outputs // 64:
            # A thread adds all parts: 14 measured for 125 of them.
            return AWAKE * (2.6 + 0.091 * parts) * rounds(node), spread(node)
        return AWAKE * 3.2 + 4 * parts * rows * outputs / CACHE, spread(node)
    if name == "adam":
        return 3.0 + 28 * n[0] / MEMORY, 0.95
    if name == "square_sums":
        return 3.0 + 4 * n[0] / MEMORY, 0.9
    if name == "dropout_bits":
        return 2.2, spread(node)
    return AWAKE * ALONE.get(name, SMALLEST) * rounds(node), spread(node)


def load(path):
    with open(path) as file:
        return [Node(json.loads(line)) for line in file]


def in_a_row(costs):
    """One node after the other."""
    return sum(us + IN_A_ROW for us, _ in costs)


def longest_way(nodes, costs):
    """us along the way through the graph that takes longest, were the card endless; and the nodes on it."""
    end, back = [], []
    for i, node in enumerate(nodes):
        last = max(node.after, key=lambda j: end[j], default=None)
        end.append((end[last] if last is not None else 0.0) + BEFORE + costs[i][0])
        back.append(last)
    i = max(range(len(nodes)), key=lambda i: end[i])
    total, way = end[i], []
    while i is not None:
        way.append(i)
        i = back[i]
    return total, way


def side_by_side(nodes, costs):
    """us from the first start to the last end, on one card."""
    followers, waiting = collections.defaultdict(list), [len(node.after) for node in nodes]
    for i, node in enumerate(nodes):
        for j in node.after:
            followers[j].append(i)
    ready = [(BEFORE, i) for i, count in enumerate(waiting) if count == 0]  # when, which
    heapq.heapify(ready)
    queue, running = [], {}  # what could start: (-urgency, node); what runs: node -> us that are left of it
    now, last_start = 0.0, -START
    while ready or queue or running:
        while ready and ready[0][0] <= now + 1e-9:
            i = heapq.heappop(ready)[1]
            heapq.heappush(queue, (-nodes[i].urgency, i))
        if queue and now >= last_start + START - 1e-9:
            i = heapq.heappop(queue)[1]
            running[i], last_start = costs[i][0], now
        left, speed = 1.0, {}
        for i in sorted(running, key=lambda i: (-nodes[i].urgency, i)):
            share = costs[i][1]
            given = min(share, left)
            # Small kernels find a place between the blocks of others.
            speed[i] = 1.0 if share < 0.03 else max(given / share, 1e-6)
            left -= given
        wait = [us / speed[i] for i, us in running.items()]
        if ready:
            wait.append(ready[0][0] - now)
        if queue:
            wait.append(max(0.0, last_start + START - now))
        step = min(wait)
        now += step
        for i in list(running):
            running[i] -= step * speed[i]
            if running[i] > 1e-7:
                continue
            del running[i]
            for j in followers[i]:
                waiting[j] -= 1
                if waiting[j] == 0:
                    heapq.heappush(ready, (now + BEFORE, j))
    return now


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("nodes", nargs="+")
    parser.add_argument("--math", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--chain", action="store_true", help="every node waits for the one before")
    parser.add_argument("--kernels", action="store_true", help="a table of kernels")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for path in given.nodes:
        nodes = load(path)
        if not nodes:
            raise SystemExit(f"{path} lists no nodes")
        costs = [cost(node, given.math) for node in nodes]
        way, on_way = longest_way(nodes, costs)
        step = in_a_row(costs) if given.chain else side_by_side(nodes, costs)
        card = sum(us * share for us, share in costs)
        figures = {"math": given.math, "nodes": len(nodes), "ms": step / 1e3}
        figures |= {"way_ms": way / 1e3, "way_nodes": len(on_way), "card_ms": card / 1e3}
        if given.json:
            print(json.dumps(figures))
        else:
            print(
                f"{path}, {given.math}: {step / 1e3:.2f} ms; {len(nodes)} nodes, {len(on_way)} of them on the longest way, which takes "
                f"{way / 1e3:.2f} ms by itself; together they fill the card for {card / 1e3:.2f} ms"
            )
        if given.kernels:
            table = collections.defaultdict(lambda: [0, 0.0, 0.0, 0, 0.0])
            for i, (node, (us, share)) in enumerate(zip(nodes, costs)):
                row = table[node.kernel]
                row[0] += 1
                row[1] += us
                row[2] += us * share
            for i in on_way:
                row = table[nodes[i].kernel]
                row[3] += 1
                row[4] += costs[i][0]
            print(f"{'kernel':<34}{'nodes':>7}{'us':>9}{'card us':>9}{'on way':>8}{'us':>8}")
            for kernel, row in sorted(table.items(), key=lambda item: -item[1][2] - item[1][4]):
                print(f"{kernel:<34}{row[0]:>7}{row[1]:>9.0f}{row[2]:>9.0f}{row[3]:>8}{row[4]:>8.0f}")


if __name__ == "__main__":
    main()
