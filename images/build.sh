#!/usr/bin/env bash
# Build the images: images/build.sh [--offline] [pipeline] [trainer]
#
#   IMAGE_REGISTRY, IMAGE_TAG   what they are called (default: ghcr.io/multimodal-gemma, the package's version)
#   BASE_IMAGE                  what they start from (default: python:3.11-slim-bookworm); built from its digest, if a registry tells it
#   TORCH_CPU_INDEX             an index with CPU builds of torch, for the pipeline image, e.g. PyTorch's own
#   --offline                   install from build/wheels and let no build step reach a network
set -euo pipefail
cd "$(dirname "$0")/.."
. images/docker.sh

base=${BASE_IMAGE:-python:3.11-slim-bookworm}
source=(--build-arg WHEELS=download)
if [ "${1:-}" = --offline ]; then
  shift
  if ! ls build/wheels/*.whl > /dev/null 2>&1; then
    echo "images: build/wheels holds no wheels. Fill it with images/wheels.sh." >&2
    exit 2
  fi
  source=(--build-arg WHEELS=context --network none)
else
  digest=$("$docker" buildx imagetools inspect --format '{{.Manifest.Digest}}' "$base" 2> /dev/null || true)
  if [[ $base != *@* && $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then base+=@$digest; fi
  if [ -z "${TORCH_CPU_INDEX:-}" ] && [[ " ${*:-pipeline} " = *" pipeline "* ]]; then
    echo "images: TORCH_CPU_INDEX is not set: the pipeline image will hold CUDA libraries that it never uses" >&2
  fi
  source+=(--build-arg TORCH_CPU_INDEX="${TORCH_CPU_INDEX:-}")
fi

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if [ -n "$(git status --porcelain -- src pyproject.toml constraints.txt images 2>/dev/null)" ]; then
  revision+=-modified
fi

for name in ${*:-pipeline trainer}; do
  start=$SECONDS
  DOCKER_BUILDKIT=1 "$docker" build --quiet --file images/Dockerfile --target "$name" --tag "$registry/$name:$tag" \
    --build-arg BASE_IMAGE="$base" --build-arg VERSION="$version" --build-arg REVISION="$revision" "${source[@]}" . > /dev/null
  size=$("$docker" image inspect --format '{{.Size}}' "$registry/$name:$tag")
  echo "images: $registry/$name:$tag built in $((SECONDS - start)) s, $((size / 1000000)) MB"
done
