#!/usr/bin/env bash
# The trainer with libtorch: installs PyTorch 2.13 into target/tch-venv, whose libtorch serves, builds with the feature `tch`
# against it in a target folder of its own, where nothing that others use comes to need libtorch, and runs the trainer's tests
# with every built-in model on libtorch. usage: ci/tch.sh [FILTER]
#
# It is run by hand: the wheel is 5 GB with its CUDA libraries, without which it does not load, and CI would spend more time
# on it than on everything else. What libtorch is compared with, the layers of our own, is tested in CI.
set -euo pipefail
cd "$(dirname "$0")/.."
version=2.13.0
venv=target/tch-venv

if ! "$venv/bin/python" -c "import torch; assert torch.__version__.split('+')[0] == '$version'" 2>/dev/null; then
    echo "tch: torch $version into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "torch==$version" numpy
fi
libraries=$("$venv/bin/python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')

export CARGO_TARGET_DIR=$PWD/target/tch LIBTORCH_USE_PYTORCH=1 VIRTUAL_ENV=$PWD/$venv PATH=$PWD/$venv/bin:$PATH
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
build=(--release --locked --package phalanx-trainer --features burn,candle,tch)
cargo build "${build[@]}" --examples
cargo test "${build[@]}" --lib --tests "$@"
