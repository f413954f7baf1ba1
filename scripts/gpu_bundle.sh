#!/usr/bin/env bash
# scripts/gpu_bundle.sh OUT
# Builds what scripts/gpu_check.sh runs, for a machine that has a GPU but no Rust: tests, benches, the training program, fixtures.
# Needs cargo, g++, python3 and strip; the machine with the GPU needs a C library that is not older than this one's.
set -euo pipefail
[ $# = 1 ] || { sed -n 2,3p "$0"; exit 2; }
mkdir -p "$1/bin"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

# Cargo's messages on stdin; copies every program in them to bin/NAME, without symbols.
collect() {
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])
' | while read -r name path; do
        strip -o "$out/bin/$name" "$path"
        echo "$name"
    done
}

cargo test --release --no-run --message-format=json --test devices_agree --test gpu_errors --test reference --test capture | collect
cargo bench --no-run --message-format=json --bench ops --bench step | collect
cargo build --release --message-format=json --example train | collect

rm -rf "$out/fixtures"
cp -r tests/fixtures "$out/fixtures"
cp benches/peer/torch_step.py scripts/gpu_check.sh "$out/"

# What a step should take, to be printed beside what it takes.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PROJECT_STEP=$out/bin/step scripts/project.sh "$scratch"
cp "$scratch/projected.txt" "$out/"
{
    git describe --always --dirty 2> /dev/null || echo unknown
    rustc --version
    date -u +%FT%TZ
} | paste -sd ' ' > "$out/bundle.txt"
cat "$out/bundle.txt"
du -sh "$out"
