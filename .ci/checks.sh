# What .ci/run is made of: headers with times, and checks of the files that examples write.

section() {
    if [ -n "${section_name:-}" ]; then echo "-- $section_name: $((SECONDS - section_began)) s"; fi
    section_name=$1 section_began=$SECONDS
    printf '\n== %s (after %d min %02d s)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60))
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# example NAME ARGUMENTS...
example() {
    cargo run --quiet --release --example "$1" -- "${@:2}"
}

exists() {
    [ -s "$1" ] || fail "$1 is missing or empty"
}

hex() { od -An -v -tx1 | tr -d ' \n'; }

# Signature, a size above 0, and the chunk that ends a whole file.
is_png() {
    exists "$1"
    [ "$(head -c 8 "$1" | hex)" = 89504e470d0a1a0a ] || fail "$1 is not a PNG"
    [ "$(tail -c 12 "$1" | hex)" = 0000000049454e44ae426082 ] || fail "$1 is cut off"
    local size
    size=$(head -c 24 "$1" | tail -c 8 | hex)
    [ "${size:0:8}" != 00000000 ] && [ "${size:8:8}" != 00000000 ] || fail "$1 has no pixels"
}

# One whole element with something drawn in it: curves or images, or what a second argument says.
is_svg() {
    exists "$1"
    [ "$(head -c 5 "$1")" = "<svg " ] || fail "$1 is not an SVG"
    [ "$(tail -c 7 "$1" | tr -d '\n')" = "</svg>" ] || fail "$1 is cut off"
    grep -Eq "<(${2:-path|polyline|image})" "$1" || fail "$1 is empty"
}

# is_csv FILE ROWS: a header that begins with the step, ROWS rows with a finite number in every field; those of test_* may be empty, but
# not all of them.
is_csv() {
    exists "$1"
    awk -F, -v rows="$2" '
        NR == 1 { if ($1 != "step") exit bad = 1; fields = NF; for (i = 1; i <= NF; i++) test[i] = $i ~ /^test_/; next }
        NF != fields { exit bad = 1 }
        {
            for (i = 1; i <= NF; i++) {
                if (test[i] && $i == "") continue
                if ($i !~ /^-?[0-9.]+(e-?[0-9]+)?$/) exit bad = 1
                if (test[i]) tested = 1
            }
        }
        END { exit bad || !tested || NR != rows + 1 }' "$1" || { cat "$1"; fail "$1 is not a CSV of $2 rows"; }
}

# refused CODE TEXT EXAMPLE ARGUMENTS...: ends with CODE and says TEXT in one line on stderr.
refused() {
    local code=0 said=$scratch/refused.txt
    example "${@:3}" > /dev/null 2> "$said" || code=$?
    cat "$said"
    [ "$code" = "$1" ] || fail "exit code $code instead of $1: ${*:3}"
    [ "$(wc -l < "$said")" = 1 ] || fail "not one line: ${*:3}"
    grep -qF "$2" "$said" || fail "\"$2\" is not said: ${*:3}"
}
