#!/usr/bin/env bash
# scripts/project.sh OUT [STEP OPTIONS...]
# Projects how long a captured training step takes on a card, without one: the bench `step` captures it on the stand-in for the driver, on
# which its kernels do nothing, and scripts/project.py replays the list of its nodes. Writes OUT/NAME.nodes and OUT/projected.txt, a line
# `step BATCH MATH captured: MS` each. Options go to the bench (--preset hour), which has the published sizes otherwise.
# Needs g++ and python3, and cargo unless there is a program:
#   PROJECT_STEP=PROGRAM       the bench, by default built here
#   PROJECT_BATCHES="64"  PROJECT_MATHS="f32 tf32 bf16"   what to project
set -euo pipefail
[ $# -ge 1 ] || { sed -n 2,9p "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
program=${PROJECT_STEP:-}
[ -z "$program" ] || program=$(realpath "$program")
cd "$(dirname "$0")/.."

if [ -z "$program" ]; then
    program=$(cargo bench --no-run --message-format=json --bench step |
        python3 -c 'import json, sys; print(*[m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")])')
fi

stand_in=$out/stand_in
mkdir -p "$stand_in"
cp tests/stand_in_driver/*.h "$stand_in/"
library() {
    local name=$1
    shift
    (cd tests/stand_in_driver && "${STAND_IN_CXX:-g++}" -std=c++17 -O1 -fPIC -shared -fvisibility=hidden -pthread "-Wl,-soname,$name" \
        -o "$stand_in/$name" "$@" -ldl)
}
library libcuda.so.1 memory.cpp executor.cpp checks.cpp streams.cpp api.cpp
library libnvrtc.so.13 nvrtc.cpp

# What has to run so that a step without kernels seems to be well: what fills tensors, tells the time, and looks at the loss.
export LD_LIBRARY_PATH=$stand_in STAND_IN_ONLY=fill,verdict,set_clock,tick STAND_IN_MEMORY=200000000000 DOOD_CACHE=$out/cache
: > "$out/projected.txt"
for batch in ${PROJECT_BATCHES:-64}; do
    for math in ${PROJECT_MATHS:-f32 tf32 bf16}; do
        name="step $batch $math captured"
        STAND_IN_NODES="$out/$name.nodes" "$program" --device cuda --captured --steps 1 --batch "$batch" --math "$math" "$@" > "$out/said.txt" 2>&1 ||
            { cat "$out/said.txt" >&2; exit 1; }
        scripts/project.py --math "$math" "$out/$name.nodes"
        ms=$(scripts/project.py --math "$math" --json "$out/$name.nodes" | python3 -c 'import json, sys; print("%.2f" % json.load(sys.stdin)["ms"])')
        echo "$name: $ms" >> "$out/projected.txt"
    done
done
