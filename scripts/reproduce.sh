#!/usr/bin/env bash
# Makes a row of results/README.md again: trains, and measures as the table does.
#
#   scripts/reproduce.sh NAME [IMAGES]   a run of results/recipes.txt; on so many test images (default 1000)
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?which run of results/recipes.txt}
images=${2:-1000}
recipe=$(awk -v name="$name" '$1 == name' results/recipes.txt)
[ -n "$recipe" ] || { echo "there is no run $name in results/recipes.txt" >&2; exit 2; }
scripts/train_all.sh "$name"
set_name=$(sed -E 's/.*--data ([a-z]+).*/\1/' <<<"$recipe")
data=$set_name${DOOD_DATA:+:$DOOD_DATA/$set_name}
fetch=$([ -n "${DOOD_DATA:-}" ] || echo --download)
cargo build --release --quiet --example evaluate --example reconstruct
folder=${DOOD_RUNS:-runs/results}/$name
target/release/examples/evaluate --checkpoint "$folder" --data "$data" $fetch --count "$images" --particles 200 --out "$folder/test.json"
target/release/examples/reconstruct --checkpoint "$folder" --data "$data" $fetch --count 24 --out "$folder/test.png"
