#!/usr/bin/env bash
# Fill build/wheels with everything that an image installs, for builds without a network: images/wheels.sh
#
# Wheels are of this machine's kind, so it must have the images' Python (3.11) and architecture. Which torch comes (CPU or
# CUDA) is what pip finds where it is set up to look.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
mkdir -p build
scratch=$(mktemp -d -p build wheels.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
"$python" images/requirements.py train pipeline int8 nf4 > "$scratch/requirements.txt"
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" wheel -qq --disable-pip-version-check --wheel-dir "$scratch/wheels" \
  -c constraints.txt -r "$scratch/requirements.txt"
rm -rf build/wheels
mv "$scratch/wheels" build/wheels
echo "images: $(ls build/wheels | wc -l) wheels, $(du -sm build/wheels | cut -f1) MB, in build/wheels"
