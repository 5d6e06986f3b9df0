#!/usr/bin/env bash
# Make the environment of onnxruntime-training anew in DIR and run the gradient tests in it.
# The package takes the place of onnxruntime, so the two cannot share an environment.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
environment=$1
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3.11} # the last Python that onnxruntime-training 1.19.2 has wheels for
"$python" -m venv --clear "$environment"
"$environment/bin/pip" install --quiet onnxruntime-training==1.19.2 \
    "numpy>=2.0" "scipy>=1.13" "numba>=0.61" "onnx>=1.21" "onnx-ir>=0.1.15" "rich>=13.9" "threadpoolctl>=3.5" "pytest>=8" "hypothesis>=6.100"
cd "$project"
"$environment/bin/python" -m pytest -p no:cacheprovider tests/qgraph/gradient
