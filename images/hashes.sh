#!/usr/bin/env bash
# Write down the hashes of what the images install from PyPI, for Python 3.11 on x86-64 Linux: images/hashes.sh
#
# Run it when constraints.txt changes. hashes.txt is what both images share; hashes-cuda.txt is PyPI's torch with the CUDA
# libraries that it brings, which the CPU image has no use for.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3.11}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --upgrade pip
"$scratch/venv/bin/python" images/requirements.py train pipeline int8 nf4 > "$scratch/requirements.txt"
# Without this machine's own configuration: other indexes have other files.
PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS='' "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check --dry-run \
  --ignore-installed --report "$scratch/report.json" -c constraints.txt -r "$scratch/requirements.txt"
"$scratch/venv/bin/python" - "$scratch/report.json" <<'PYTHON'
import json, re, sys

lines = {"images/hashes.txt": [], "images/hashes-cuda.txt": []}
for item in json.load(open(sys.argv[1]))["install"]:
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    cuda = re.match(r"(nvidia|cuda)[-_]|triton$|torch$", name)
    lines["images/hashes-cuda.txt" if cuda else "images/hashes.txt"].append(f"{name}=={version} --hash=sha256:{digest}\n")
for path, found in lines.items():
    with open(path, "w") as file:
        file.writelines(sorted(found, key=str.lower))
PYTHON
echo "images: $(cat images/hashes*.txt | wc -l) hashes in images/hashes.txt and images/hashes-cuda.txt"
