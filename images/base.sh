#!/usr/bin/env bash
# Make a base image where none can be pulled: images/base.sh NAME
#
# A minimal Debian from the packages that this machine installs from, with what the Dockerfiles ask of a base.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
mirror=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' | head -n 1)
if [ -z "$mirror" ]; then
  echo "images: this machine installs no Debian bookworm packages, so no base can be made of them. Pull one: BASE_IMAGE=." >&2
  exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf --one-file-system "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,g++,ca-certificates bookworm "$folder/root" \
  "$mirror" > "$folder/log" || { tail -n 20 "$folder/log" >&2; exit 1; }
rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/* "$folder"/root/usr/share/{doc,man}/*
tar --create --directory "$folder/root" --numeric-owner . | docker import - "$name" > /dev/null
echo "images: $name made of Debian bookworm"
