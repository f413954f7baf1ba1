#!/usr/bin/env bash
# Makes the runs of results/recipes.txt one after the other, each from where it stopped; those that are done are left out. It may be
# killed at any moment and started again.
#
#   scripts/train_all.sh [NAME...]       all runs, or these
#
# DOOD_RUNS: folder of the runs (default runs/results). DOOD_DATA: folder with a folder for each data set; without it they are fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${DOOD_RUNS:-runs/results}
cargo build --release --quiet --example train
while read -r name arguments; do
    case $name in '' | '#'*) continue ;; esac
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
    folder=$runs/$name arguments=${arguments//RUNS/$runs}
    if [ -e "$folder/done" ]; then continue; fi
    # Files of one's own are taken as they are.
    fetch=--download
    if [ -n "${DOOD_DATA:-}" ]; then
        fetch=
        arguments=$(sed -E "s|--data ([a-z]+)|--data \1:$DOOD_DATA/\1|" <<<"$arguments")
    fi
    resume=
    if compgen -G "$folder/checkpoint-*.safetensors" >/dev/null; then resume=--resume; fi
    echo "$name: train $arguments $resume"
    # A run that goes on is begun already.
    if [ -n "$resume" ]; then arguments=$(sed -E 's|--start [^ ]+||' <<<"$arguments"); fi
    # shellcheck disable=SC2086 # the arguments are words
    nice target/release/examples/train $arguments $fetch --out "$folder" --iwae 0 $resume </dev/null
    touch "$folder/done"
done <results/recipes.txt
