#!/usr/bin/env bash
# What a machine with NVIDIA GPUs has to say: runs everything that needs one and writes the findings into docs/gpu.md, between
# its two marks. usage: ci/gpu.sh [--dry-run]
#
# It takes a Rust toolchain, the NVIDIA driver, and libnccl.so.2 (libnccl2, or pip's nvidia-nccl with its folder on
# LD_LIBRARY_PATH). With PyTorch for CUDA at hand (PYTHON, default python3) it trains too. A step that fails is a finding;
# the exit code says whether any did.
set -uo pipefail
cd "$(dirname "$0")/.."
page=docs/gpu.md
begin='<!-- findings of ci/gpu.sh: begin -->'
end='<!-- findings of ci/gpu.sh: end -->'
dry=
[ "${1:-}" = --dry-run ] && dry=1
python=${PYTHON:-python3}

say() { echo "gpu: $*" >&2; }

if ! grep -qxF "$begin" "$page" || ! grep -qxF "$end" "$page"; then
    say "$page has no marks for the findings"
    exit 2
fi
gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | wc -l)
if [ "$gpus" -eq 0 ]; then
    say "no GPU here (nvidia-smi lists none); nothing was run and $page stays as it is"
    exit 3
fi

findings=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$findings" "$scratch"' EXIT
failed=0

# A step: its name, then its command; the last lines of what it printed are the finding.
step() {
    local name=$1
    shift
    say "$name: $*"
    local start=$SECONDS verdict=passed code=0
    "$@" >"$scratch/out" 2>&1 || code=$?
    if [ "$code" -ne 0 ]; then
        verdict="FAILED with code $code"
        failed=1
    fi
    say "$name: $verdict"
    {
        echo
        echo "### $name: $verdict ($((SECONDS - start)) s)"
        echo
        echo '```text'
        echo "\$ $*"
        tail -n 30 "$scratch/out" | cut -c1-160
        echo '```'
    } >>"$findings"
}

# What cannot be run here, and why.
skip() {
    say "$1: SKIPPED, $2"
    printf '\n### %s: skipped (%s)\n' "$1" "$2" >>"$findings"
}

{
    echo
    echo "Run on $(date -u +%Y-%m-%d) at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)."
    echo
    echo '```text'
    nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv
    nvidia-smi topo -m 2>/dev/null | sed 's/\x1b\[[0-9;]*m//g' | head -n $((gpus + 2))
    echo '```'
} >>"$findings"

step "build" cargo build --release --locked --bin phalanx
phalanx=target/release/phalanx
step "devices and libraries" "$phalanx" doctor
step "inventory against the driver" cargo test --release --locked -p phalanx-gpu
step "NCCL and the driver load; one GPU alone" cargo test --release --locked -p phalanx-collective --test contract -- --nocapture real_device
if [ "$gpus" -ge 2 ]; then
    step "every operation between two GPUs gives what the reference gives, and a death aborts it" \
        cargo test --release --locked -p phalanx-collective --test contract -- --nocapture real_devices
    for world in 2 4 8; do
        [ "$world" -le "$gpus" ] || continue
        step "allreduce: algbw and busbw of $world GPUs" \
            "$phalanx" bench allreduce --transport nccl --world "$world" --sizes 1KiB,64KiB,1MiB,25MiB,100MiB,1GiB
    done
else
    skip "collectives between GPUs" "there is one GPU"
fi

export PHALANX_DATA="$scratch/data"

# A model written with burn, on burn's own CUDA backend.
step "build with burn's CUDA backend" env CARGO_TARGET_DIR=target/cuda \
    cargo build --release --locked -p phalanx-trainer --features burn-cuda --example custom_model
step "a model written with burn on one GPU" "$phalanx" run examples/custom_model/job.toml \
    --set gang.workers=1 --set gang.gpus=1 \
    --set 'program.command=["target/cuda/release/examples/custom_model", "examples/custom_model/train.toml"]'

# Training: PyTorch's DDP over NCCL as a gang of ours, with one GPU and with all, and with a rank that is killed.
if "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    job() { # workers, more command-line words
        local workers=$1
        shift
        printf 'version = 1\nmax_failures = 1\ntime_limit = "5m"\n[gang]\nworkers = %s\ngpus = 1\n[program]\ncommand = [%s]\nworkdir = "%s"\n' \
            "$workers" "\"$python\", \"ci/gpu_train.py\"$(printf ', "%s"' "$@")" "$PWD" >"$scratch/job.toml"
    }
    job 1 train
    step "training on one GPU" "$phalanx" run "$scratch/job.toml"
    if [ "$gpus" -ge 2 ]; then
        job "$gpus" train
        step "training on $gpus GPUs" "$phalanx" run "$scratch/job.toml"
        job 2 die
        step "a rank that is killed once: the gang restarts and ends well" "$phalanx" run "$scratch/job.toml"
    fi

    # The built-in models on PyTorch's libtorch, whose gradients NCCL sums where they are.
    if "$python" -c 'import torch; assert torch.__version__.split("+")[0] == "2.13.0"' 2>/dev/null; then
        libraries=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
        with_libtorch() {
            env CARGO_TARGET_DIR=target/tch LIBTORCH_USE_PYTORCH=1 PATH="$(dirname "$(command -v "$python")"):$PATH" \
                LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
        }
        step "build with libtorch" with_libtorch cargo build --release --locked --features tch --bin phalanx
        step "the libtorch in use" with_libtorch target/tch/release/phalanx doctor
        for workers in $(printf '%s\n' 1 "$gpus" | uniq); do
            for precision in f32 bf16; do
                step "the built-in trainer on $workers GPUs in $precision" with_libtorch target/tch/release/phalanx run \
                    examples/digits/tour.toml --set gang.workers="$workers" --set gang.gpus=1 \
                    --set 'train.backend="tch"' --set "train.precision=\"$precision\"" --set train.epochs=50
            done
        done
    else
        skip "the built-in trainer" "$python has no PyTorch 2.13.0"
    fi
else
    skip "training" "$python cannot import a PyTorch that sees a GPU"
fi

if [ -n "$dry" ]; then
    cat "$findings"
else
    awk -v begin="$begin" -v end="$end" -v file="$findings" '
        $0 == begin { print; while ((getline line < file) > 0) print line; print ""; inside = 1 }
        $0 == end { inside = 0 }
        !inside && $0 != begin { print }
    ' "$page" >"$scratch/page" && cat "$scratch/page" >"$page"
    say "$page has the findings; commit it"
fi
exit "$failed"
