#!/usr/bin/env bash
# Make an environment in DIR of the oldest versions that pyproject.toml allows, and quantize, apply and evaluate in it.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
environment=$1
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.11} # the oldest that the project allows
cd "$project"
"$python" -m venv --clear "$environment"
"$environment/bin/python" - > "$environment/oldest.txt" << 'END'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
for name, version in (re.fullmatch(r"([\w-]+)>=([\d.]+)", text).groups() for text in dependencies):
    while version.count(".") < 1:
        version += ".0"
    print(f"{name}=={version}" if version.count(".") > 1 else f"{name}=={version}.*")
END
"$environment/bin/pip" install --quiet --disable-pip-version-check --constraint "$environment/oldest.txt" . "pytest>=8" "hypothesis>=6.100"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
assets=qgraph/demo_assets
qgraph=$environment/bin/qgraph
"$qgraph" quantize "$assets/digits.onnx" -o "$out/4.onnx" --data "$assets/digits_calibration.npz" --plan "$out/4.json" \
    --method aciq --quiet
"$qgraph" apply "$assets/digits.onnx" "$out/4.json" -o "$out/again.onnx" --quiet
cmp "$out/4.onnx" "$out/again.onnx"
"$qgraph" evaluate "$out/4.onnx" --data "$assets/digits_test.npz" --against "$assets/digits.onnx"
"$environment/bin/python" -m pytest -p no:cacheprovider tests/qgraph/lowering/test_offset.py tests/qgraph/onnxfile/test_model.py
