#!/usr/bin/env bash
# Build the images with a real Docker engine and run the sample pipeline in them: images/test.sh [pytest options]
#
# Needs nothing but Debian's packages and the wheels that pip finds: where no base image can be pulled, one is made of
# packages; where no engine runs, one is started, and ended with all that it holds. Takes minutes and about 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

timed() {
  local start=$SECONDS
  "$@"
  echo "images: $* took $((SECONDS - start)) s"
}

missing=()
command -v dockerd > /dev/null || docker info > /dev/null 2>&1 || missing+=(docker.io)
command -v debootstrap > /dev/null || missing+=(debootstrap)
if [ ${#missing[@]} != 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "images: ${missing[*]} must be installed first: apt-get install ${missing[*]}" >&2
    exit 2
  fi
  timed apt-get update -qq
  timed apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

. images/engine.sh
scratch=$(mktemp -d)
trap 'engine_stop; rm -rf "$scratch"' EXIT
timed engine_start "$scratch/engine"
. images/docker.sh

export BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}
if ! docker image inspect "$BASE_IMAGE" > /dev/null 2>&1 && ! timeout 60 docker pull --quiet "$BASE_IMAGE" 2> /dev/null; then
  echo "images: $BASE_IMAGE cannot be pulled here; a base is made of Debian's packages instead"
  BASE_IMAGE=multimodal-gemma-base:bookworm
  timed images/base.sh "$BASE_IMAGE"
fi
if ! [ build/wheels -nt constraints.txt ] || ! [ build/wheels -nt pyproject.toml ]; then
  TORCH_INDEX=configured timed images/wheels.sh
fi
timed images/build.sh --offline pipeline trainer
MMGEMMA_TEST_IMAGES="$registry $tag" timed "${PYTHON:-.venv/bin/python}" -m pytest tests/images "$@"
