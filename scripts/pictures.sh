#!/usr/bin/env bash
# Makes every picture of the README from the present code, into docs/: drawings of the models that ship, a training run with the quick
# preset and its metrics, strokes fitted to a picture by gradient descent.
#
#   scripts/pictures.sh [DATA [STEPS]]     the run's: synthetic and 4000 if not given, about four minutes on 2 cores
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-synthetic} steps=${2:-4000}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

example() {
    cargo run --quiet --release --example "$1" -- "${@:2}"
}

example train --data "$data" --steps "$steps" --iwae 0 --out "$scratch/run"
digits=images:models/digits
example reconstruct --checkpoint mnist --data $digits --count 6 --out "$scratch/drawn.png"
example reconstruct --checkpoint mnist --data $digits --count 12 --out "$scratch/strokes.svg"
for set in omniglot quickdraw; do
    example reconstruct --checkpoint $set --data images:models/$set --count 9 --out "$scratch/$set.svg"
done
example generate --checkpoint mnist --count 48 --columns 12 --out "$scratch/generated"
example generate --checkpoint omniglot --count 48 --columns 12 --out "$scratch/characters"
example generate --checkpoint quickdraw --count 24 --columns 8 --out "$scratch/things"
example complete --checkpoint mnist --out "$scratch/completed"
example vary --checkpoint mnist --data $digits --count 4 --exemplars 8 --out "$scratch/varied"
example fit_stroke --out "$scratch/fit"
if command -v chromedriver > /dev/null; then
    cargo build --quiet --release --example draw
    cargo test --quiet --release --test browser -- --ignored picture
fi
# Only when all are there.
cp "$scratch/run/metrics.svg" docs/metrics.svg
cp "$scratch/drawn.png" docs/reconstruction.png
cp "$scratch/strokes.svg" docs/strokes.svg
cp "$scratch/omniglot.svg" "$scratch/quickdraw.svg" docs/
cp "$scratch/generated.png" docs/generated.png
cp "$scratch/characters.png" docs/characters.png
cp "$scratch/things.png" docs/things.png
cp "$scratch/completed.png" docs/completed.png
cp "$scratch/varied.png" docs/varied.png
cp "$scratch/fit/fit.png" docs/fit_stroke.png
ls -l docs/*.png docs/*.svg
