#!/usr/bin/env bash
# scripts/gpu_check.sh BUNDLE DATA [OUT]
# Everything that only a real GPU can show, in less than 25 minutes: tests, compute-sanitizer, benches beside PyTorch, a training run.
#   BUNDLE  folder made by scripts/gpu_bundle.sh on a machine with Rust
#   DATA    folder of data sets, with mnist/ in it
#   OUT     folder for the result (JSON) and the log of all commands; by default benches/results
# Needs the NVIDIA driver and NVRTC; compute-sanitizer, ncu and python3 with torch are used where they are. No network.
# Each step has a time limit, and one that fails does not stop the others. The exit code is 0 if all of them are well.
#   GPU_CHECK_SECONDS=1440    time for everything
#   GPU_CHECK_PARTS="tests training ranks sanitizer benches peer profile"   what to run, by default all of it
#   GPU_CHECK_STAND_IN=DIR    no GPU: the driver and NVRTC of DIR (the tests build them in a folder of target/tmp/stand_in_driver), tiny
#                             sizes and no tools that need a GPU; shows that this script works
set -uo pipefail
[ $# = 2 ] || [ $# = 3 ] || { sed -n 2,7p "$0"; exit 2; }
[ -x "$1/bin/devices_agree" ] || { echo "$1 is not a bundle: make it with scripts/gpu_bundle.sh" >&2; exit 2; }
bundle=$(cd "$1" && pwd)
data=$2
mkdir -p "${3:-benches/results}"
out=$(cd "${3:-benches/results}" && pwd)
stand_in=${GPU_CHECK_STAND_IN:-}
budget=${GPU_CHECK_SECONDS:-1440}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
parts=" ${GPU_CHECK_PARTS:-tests training ranks sanitizer benches peer profile} "
export RUST_BACKTRACE=0 DOOD_CACHE=$scratch/cache DOOD_FIXTURES=$bundle/fixtures DOOD_DATA=$data

# ---- The machine ---------------------------------------------------------------------------------------------------------

# The newest folder with a library (nvrtc, nccl), where the loader does not know it already.
find_library() {
    ldconfig -p 2> /dev/null | grep -q "lib$1\.so" && return
    local places=(/usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib /opt/cuda/lib64)
    local site
    site=$(python3 -c 'import site, sys; print(*site.getsitepackages(), site.getusersitepackages(), sep="\n")' 2> /dev/null)
    while read -r folder; do places+=("$folder"/nvidia/{cu13,cuda_nvrtc,nccl}/lib); done <<< "$site"
    local folder
    for folder in "${places[@]}"; do
        compgen -G "$folder/lib$1.so*" > /dev/null && echo "$folder"
    done | sort -V | tail -n 1
}

# is_there LIBRARY: whether the loader finds it, with a line if not.
is_there() {
    ldconfig -p 2> /dev/null | grep -q "lib$1\.so" && return 0
    local folder
    for folder in ${LD_LIBRARY_PATH//:/ }; do compgen -G "$folder/lib$1.so*" > /dev/null && return 0; done
    echo "lib$1.so is not there: its steps are left out"
    return 1
}

asked() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2> /dev/null | head -n 1; }

if [ -n "$stand_in" ]; then
    export LD_LIBRARY_PATH=$stand_in
    export DOOD_FIXTURES=$scratch/fixtures # without those of the published sizes, which take minutes
    mkdir "$DOOD_FIXTURES"
    cp "$bundle"/fixtures/{ops,*_tiny*}.safetensors "$DOOD_FIXTURES"
    gpu=stand-in driver=none
else
    for library in nvrtc nccl; do
        found=$(find_library $library)
        [ -z "$found" ] || export LD_LIBRARY_PATH=$found${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    done
    gpu=$(asked name) driver=$(asked driver_version)
fi
gpu=${gpu:-unknown} driver=${driver:-unknown}
date=$(date -u +%FT%TZ)
slug=$(date -u +%F-%H%M)-$(tr -cs 'A-Za-z0-9' '-' <<< "$gpu" | sed 's/-*$//')
log=$out/$slug.log
: > "$log"
made=$(cat "$bundle/bundle.txt" 2> /dev/null || echo unknown)
echo "GPU      $gpu"
echo "driver   $driver"
echo "memory   $(asked memory.total)"
echo "clocks   $(asked clocks.max.sm) SM, $(asked clocks.max.mem) memory"
echo "date     $date"
echo "bundle   $made"
echo "NVRTC    ${LD_LIBRARY_PATH:-known to the loader}"
echo "nvcc     $(nvcc --version 2> /dev/null | sed -n 's/.*release //p' | head -n 1)"
python3 -c 'import torch; print("torch   ", torch.__version__, "for CUDA", torch.version.cuda)' 2> /dev/null || echo "torch    not there"
echo

# ---- Steps ---------------------------------------------------------------------------------------------------------------

quoted() { sed 's/\\/\\\\/g; s/"/\\"/g' <<< "$1"; }

steps=() figures=() all_is_well=1

# step LIMIT NAME COMMAND...: runs it for LIMIT seconds at most, and takes note of how it went and of the JSON lines that it prints.
step() {
    local limit=$1 name=$2 left=$((budget - SECONDS)) status=ok began=$SECONDS said=$scratch/said.txt code=0
    shift 2
    printf '%-44s ' "$name"
    if [ "$left" -lt 5 ]; then
        status="not run: no time left"
        : > "$said"
    else
        [ "$limit" -le "$left" ] || limit=$left
        timeout -k 10 "$limit" "$@" > "$said" 2>&1 || code=$?
        case $code in
            0) ;;
            124 | 137) status="stopped after $limit s" ;;
            *) status="failed with code $code" ;;
        esac
        if [ $code = 0 ] && grep -q 'skipped: tests of the CUDA backend' "$said"; then status="skipped"; fi
    fi
    printf '%5d s  %s\n' $((SECONDS - began)) "$status"
    printf '\n==== %s: %s\n==== %s\n' "$name" "$status" "$*" >> "$log"
    cat "$said" >> "$log"
    if [ "$status" != ok ]; then
        all_is_well=0
        grep -vE '^ *[0-9]+: |^ +at |^$' "$said" | tail -n 12 | cut -c -240 | sed 's/^/    | /'
    fi
    steps+=("{\"name\":\"$(quoted "$name")\",\"command\":\"$(quoted "$*")\",\"status\":\"$status\",\"seconds\":$((SECONDS - began))}")
    local line
    while read -r line; do figures+=("{\"step\":\"$(quoted "$name")\",${line#\{}"); done < <(grep '^{"' "$said")
}

# has TOOL: whether a tool that only helps on a GPU is there, with a line if not.
has() {
    [ -z "$stand_in" ] || return 1
    command -v "$1" > /dev/null && return 0
    for folder in /usr/local/cuda*/bin /opt/nvidia/nsight-compute/*; do
        if [ -x "$folder/$1" ]; then
            PATH=$PATH:$folder
            return 0
        fi
    done
    echo "$1 is not there: its steps are left out"
    return 1
}

# wanted PART HEADING
wanted() {
    [[ $parts == *" $1 "* ]] || return 1
    echo "$2"
}

small=() batches=(64 256 1024) maths=(f32 tf32 bf16) preset=paper updates=(400 450) training=(--iwae 5)
if [ -n "$stand_in" ]; then
    small=(--preset quick --batch 1 --steps 1) batches=(1) maths=(f32) preset=quick updates=(2 3) training=(--iwae 0 --batch 1)
fi

if wanted tests "Tests"; then
    # Tests of the GPU share it, so one at a time; gpu_errors plants its faults on the stand-in, where g++ is there.
    step 240 "ops agree with the CPU" "$bundle/bin/devices_agree" --nocapture --test-threads=1
    step 240 "fixtures through the kernels" "$bundle/bin/reference" --nocapture --test-threads=1 by_the_kernels
    step 180 "captured and eager steps" "$bundle/bin/capture" --nocapture --test-threads=1
    step 120 "errors are sentences (stand-in)" "$bundle/bin/gpu_errors" --test-threads=1
fi

if wanted training "Training"; then
    run=$scratch/run
    first=$run/checkpoint-$(printf %08d "${updates[0]}").safetensors
    second=$run/checkpoint-$(printf %08d "${updates[1]}").safetensors
    step 120 "train, ${updates[0]} updates" "$bundle/bin/train" --device cuda --out "$run" --data "mnist:$data/mnist" --preset $preset \
        --steps "${updates[0]}" --log-every 50 "${training[@]}"
    step 10 "its checkpoint is there" test -s "$first"
    step 60 "train, resumed to ${updates[1]}" "$bundle/bin/train" --device cuda --resume --out "$run" --steps "${updates[1]}" --iwae 0
    step 10 "its checkpoint is there, too" test -s "$second"
    cat "$run/metrics.csv" >> "$log" 2> /dev/null
fi

if wanted ranks "Several GPUs" && { [ -n "$stand_in" ] || is_there nccl; }; then
    # With one card, NCCL has nobody to talk to, but is captured and replayed all the same.
    [ -z "$stand_in" ] || export STAND_IN_DEVICES=2
    cards=${STAND_IN_DEVICES:-$(nvidia-smi --list-gpus 2> /dev/null | wc -l)}
    for gpus in 1 2 4 8; do
        [ "$gpus" -le "$cards" ] || continue
        step 180 "train on $gpus of $cards through NCCL" env DOOD_RANKS_ALONE=1 "$bundle/bin/train" --gpus "$gpus" --out "$scratch/ranks-$gpus" \
            --data "mnist:$data/mnist" --preset $preset --steps "${updates[0]}" --log-every 50 "${training[@]}"
        tail -n 1 "$scratch/ranks-$gpus/metrics.csv" >> "$log" 2> /dev/null
    done
    unset STAND_IN_DEVICES
    [ "$cards" -gt 1 ] || echo "one card: what several do together is left out"
fi

if wanted sanitizer "compute-sanitizer" && has compute-sanitizer; then
    # Memory that is filled before use would hide reads of what no kernel wrote.
    export DOOD_CUDA_ALLOC=each DOOD_CUDA_POISON=0
    for tool in memcheck racecheck initcheck synccheck; do
        step 130 "$tool of all ops" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
            "$bundle/bin/devices_agree" --exact --nocapture --test-threads=1 ops_on_the_gpu_agree_with_the_cpu
    done
    unset DOOD_CUDA_ALLOC DOOD_CUDA_POISON
fi

if wanted benches "Benches"; then
    for math in "${maths[@]}"; do
        filter=()
        [ "$math" = f32 ] || filter=(--filter linear,conv_pair,gru,mlp,embedder)
        [ -z "$stand_in" ] || filter=(--filter "add images" --product 32 --batch 1)
        step 90 "ops $math" "$bundle/bin/ops" --device cuda --math "$math" --json "${filter[@]}"
    done
    [ -n "$stand_in" ] || filter=(--product 1024)
    step 90 "ops f32 naive" env DOOD_CUDA_NAIVE=1 "$bundle/bin/ops" --device cuda --json "${filter[@]}"
    for batch in "${batches[@]}"; do
        for math in "${maths[@]}"; do
            for mode in eager captured; do
                flag=()
                [ $mode = eager ] || flag=(--captured)
                step 45 "step $batch $math $mode" "$bundle/bin/step" --device cuda "${small[@]}" --batch "$batch" --math "$math" \
                    "${flag[@]}" --json
            done
        done
    done
    # What it brings that a kernel waits only for those whose results it needs.
    step 45 "step ${batches[0]} f32 captured as a chain" env DOOD_CUDA_GRAPH=chain "$bundle/bin/step" --device cuda "${small[@]}" \
        --batch "${batches[0]}" --captured --json
fi

if wanted peer "The same step in PyTorch"; then
    if [ -z "$stand_in" ] && python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
        peer=(python3 -W ignore "$bundle/torch_step.py" --device cuda)
        step 45 "torch 64 f32 eager naive" "${peer[@]}"
        step 45 "torch 64 f32 graph naive" "${peer[@]}" --mode graph
        for batch in "${batches[@]}"; do
            for math in f32 tf32; do
                step 45 "torch $batch $math eager separable" "${peer[@]}" --batch "$batch" --math "$math" --raster separable
                step 60 "torch $batch $math graph separable" "${peer[@]}" --batch "$batch" --math "$math" --raster separable --mode graph
            done
        done
        step 180 "torch 64 f32 compile separable" "${peer[@]}" --raster separable --mode compile
    else
        echo "torch with a GPU is not there: its steps are left out"
    fi
fi

if wanted profile "Time per op and kernel"; then
    step 60 "step 64 f32 eager with time per op" env DOOD_PROFILE=1 "$bundle/bin/step" --device cuda "${small[@]}" --batch 64 --steps 4
    if has ncu; then
        metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed
        step 120 "ncu of 600 kernels of a step" ncu --csv --metrics $metrics --launch-skip 600 --launch-count 600 \
            "$bundle/bin/step" --device cuda --batch 64 --steps 1
    fi
fi

# ---- Results ---------------------------------------------------------------------------------------------------------------

field() { sed -nE "s/.*\"$2\":\"?([^\",}]*).*/\1/p" <<< "$1"; }

# By scripts/project.sh for an H200, when the bundle was made; not for tiny sizes.
declare -A projected=()
if [ -z "$stand_in" ]; then
    while IFS=: read -r name ms; do projected[$name]=${ms# }; done < "$bundle/projected.txt"
fi
printf '\n%-44s %10s %12s %10s\n' "step" "ms" "images/s" "projected"
for line in "${figures[@]}"; do
    [ "$(field "$line" bench)" = step ] || continue
    name=$(field "$line" step)
    printf '%-44s %10.2f %12.1f %10s\n' "$name" "$(field "$line" ms)" "$(field "$line" images_per_second)" "${projected[$name]:-}"
done

# What the optimised kernels gain over their plain twins.
declare -A optimised
for line in "${figures[@]}"; do
    [ "$(field "$line" bench)" = op ] || continue
    name=$(sed -nE 's/.*"name":"([^"]*)".*/\1/p' <<< "$line")
    ms=$(awk "BEGIN { print $(field "$line" forward_ms) + $(field "$line" backward_ms) }")
    case "$(field "$line" step)/$name" in
        "ops f32/"*) optimised[$name]=$ms ;;
        "ops f32 naive/"*linear* | "ops f32 naive/"*conv_pair* | "ops f32 naive/"*stroke* | "ops f32 naive/"*stn*)
            [ -n "${optimised[$name]:-}" ] || continue
            printf '%-44s %10.3f %12.3f\n' "$name" "${optimised[$name]}" "$ms" >> "$scratch/gain.txt"
            ;;
    esac
done
if [ -s "$scratch/gain.txt" ]; then
    printf '\n%-44s %10s %12s\n' "op, forward and backward" "ms" "naive ms"
    cat "$scratch/gain.txt"
fi

join() {
    local first=1 item
    for item in "$@"; do
        [ $first = 1 ] || printf ',\n'
        first=0
        printf '  %s' "$item"
    done
    printf '\n'
}
result=$out/$slug.json
{
    printf '{"gpu":"%s","driver":"%s","date":"%s","bundle":"%s","seconds":%d,\n' \
        "$(quoted "$gpu")" "$(quoted "$driver")" "$date" "$(quoted "$made")" $SECONDS
    printf '"steps":[\n%s\n],\n"figures":[\n%s\n]}\n' "$(join "${steps[@]}")" "$(join ${figures[@]+"${figures[@]}"})"
} > "$result.partial" && mv "$result.partial" "$result"

printf '\n%d s in all; figures in %s, what the commands said in %s\n' $SECONDS "$result" "$log"
if [ $all_is_well = 1 ]; then echo "All is well."; else echo "NOT all is well: see above."; exit 1; fi
