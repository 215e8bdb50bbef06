#!/usr/bin/env bash
# Fill a folder with everything that the images install, for builds without a network: images/wheels.sh [FOLDER]
#
#   FOLDER        default: build/wheels
#   TORCH_INDEX   where torch comes from. Empty: PyPI's, with the CUDA libraries that it brings. An address: that index, e.g. one
#                 of CPU builds. `configured`: wherever pip is set up to look on this machine.
#
# Wheels are of this machine's kind, so it must have the images' Python (3.11) and architecture. On x86-64, what comes from PyPI
# has to have the hash that is written down in images/hashes*.txt (images/hashes.sh writes them); torch of another index is taken
# as that index gives it.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
folder=${1:-build/wheels}
index=${TORCH_INDEX:-}
mkdir -p "$(dirname "$folder")"
scratch=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
"$python" images/requirements.py train pipeline int8 nf4 > "$scratch/requirements.txt"
"$python" -m venv "$scratch/venv"
pip=("$scratch/venv/bin/python" -m pip -qq --disable-pip-version-check)
# Debian's pip makes wheels of sdists with setup.py, for which its environments hold no `wheel`.
"${pip[@]}" install --upgrade pip setuptools wheel
wheel=("${pip[@]}" wheel --wheel-dir "$scratch/wheels" -c constraints.txt)

case $index in
  "") ;;
  configured) "${wheel[@]}" --no-deps torch ;;
  *) "${wheel[@]}" --no-deps --index-url "$index" torch ;;
esac
if [ "$(uname -m)" = x86_64 ]; then
  hashed=(-r images/hashes.txt)
  if [ -z "$index" ]; then hashed+=(-r images/hashes-cuda.txt); fi
  "${pip[@]}" wheel --wheel-dir "$scratch/wheels" --no-deps --require-hashes "${hashed[@]}"
fi
# What is still missing: nothing on x86-64 but what a torch of another index asks for.
"${wheel[@]}" --find-links "$scratch/wheels" -r "$scratch/requirements.txt"
rm -rf "$folder"
mv "$scratch/wheels" "$folder"
echo "images: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sm "$folder" | cut -f1) MB, in $folder"
