#!/usr/bin/env bash
# How long a user of the page to draw in waits, measured in a headless Chromium (Debian: chromium, chromium-driver) with the model that
# ships: from lifting the pen, or clicking, to what is on the screen.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --example draw
DOOD_REQUIRE_BROWSER=1 cargo test --quiet --release --test browser -- --ignored --nocapture latencies | grep ' ms '
