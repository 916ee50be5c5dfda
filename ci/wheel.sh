#!/usr/bin/env bash
# Builds the wheel and tries it in a fresh environment, as `pip install` would: the command, the package, and both together.
# What `cargo build --release` has built already is used as it is. The wheel is left in target/wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet 'maturin>=1.9,<2'
rm -rf target/wheels
(cd python && "$work/build/bin/maturin" build --release --out ../target/wheels)
ls -l target/wheels/*.whl

python3 -m venv "$work/user"
wheel=$(echo target/wheels/phalanx-*.whl)
"$work/user/bin/pip" install --quiet "phalanx[client] @ file://$PWD/$wheel"
cd "$work" # away from the checkout, whose package would be found first
user=$work/user/bin
"$user/phalanx" --version
"$user/python" - <<'PYTHON'
import os

import phalanx

assert os.path.exists(os.path.join(os.path.dirname(phalanx.__file__), "py.typed")), "no types"
with phalanx.Study({
    "sweep": {"metric": "loss", "mode": "min", "trials": 3},
    "params": {"x": {"kind": "float", "low": 0.0, "high": 1.0}},
}) as study:
    for trial in study:
        trial.tell(trial.params["x"])
assert study.best is not None and study.best.number < 3
from phalanx import Client, callbacks  # noqa: E402,F401
from phalanx import _wire  # noqa: E402

assert _wire.message("Job")(id="j1").id == "j1"
PYTHON
PHALANX_DATA=$work/data "$user/phalanx" run -q -- "$user/python" -c 'import phalanx; phalanx.report(1, loss=0.5)'
PHALANX_DATA=$work/data "$user/phalanx" metrics j1 | grep -q '"loss":0.5'
echo "wheel: ok"
