#!/usr/bin/env bash
# Builds the wheel and tries it in a fresh environment, as `pip install` would: the command, the package, and both together.
# What `cargo build --release` has built already is used as it is. The wheel is left in target/wheels, and beside it the
# source distribution, whose sources are looked at but not built: `ci/wheel.sh --from-source` does that too.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet 'maturin>=1.9,<2'
rm -rf target/wheels
# `--locked` here and not in pyproject.toml: a source distribution leaves out the members of the workspace that nobody needs to
# build it, and its lock file then names more than there is.
(cd python && "$work/build/bin/maturin" build --release --locked --out ../target/wheels)
(cd python && "$work/build/bin/maturin" sdist --out ../target/wheels)
ls -l target/wheels/

# What has to be in them, whole and no link that leads nowhere.
held() {
    for wanted in "${@:2}"; do
        grep -qE "$wanted" <<<"$1" || { echo "wheel: no $wanted in:" && echo "$1" && exit 1; }
    done
}
listed() { "$work/build/bin/python" -c 'import sys, zipfile
for file in zipfile.ZipFile(sys.argv[1]).infolist():
    if file.file_size or file.filename.endswith("py.typed"): print(file.filename)' "$1"; }
held "$(listed target/wheels/phalanx-*.whl)" '\.data/scripts/phalanx$' 'phalanx/phalanx\.v1\.bin$' 'phalanx/py\.typed$' \
    'phalanx/callbacks/_lightning\.py$' 'licenses/LICENSE-MIT$' 'licenses/LICENSE-APACHE$'
mkdir "$work/sdist"
tar -xzf target/wheels/phalanx-*.tar.gz -C "$work/sdist" --strip-components=1
held "$(cd "$work/sdist" && find . -type f -size +0)" '/Cargo\.lock$' '/phalanx/phalanx\.v1\.bin$' '/dashboard/dist/index\.html$' \
    '/api/src/gen/phalanx\.v1\.rs$' '/LICENSE-MIT$'
(cd "$work/sdist" && cargo metadata --format-version 1 --offline >"$work/metadata.json")

python3 -m venv "$work/user"
wheel=$(echo target/wheels/phalanx-*.whl)
"$work/user/bin/pip" install --quiet "phalanx[client] @ file://$PWD/$wheel"
target=$PWD/target
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
if [ "${1-}" = --from-source ]; then
    # Into the same target folder, where what it depends on is built already.
    CARGO_TARGET_DIR=$target "$work/build/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/again" "$target"/wheels/phalanx-*.tar.gz
    ls -l "$work/again"
    # It leaves a copy there, and two wheels of one version are one too many for pip.
    rm -f "$target"/wheels/phalanx-*-linux_x86_64.whl
fi
echo "wheel: ok"
