# Sourced by the scripts beside it: the docker client to use, and the names of the images.

# Each image is REGISTRY/pipeline:TAG and REGISTRY/trainer:TAG.
registry=${IMAGE_REGISTRY:-ghcr.io/multimodal-gemma}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/multimodal_gemma/__init__.py)
tag=${IMAGE_TAG:-$version}

if [ "$tag" = latest ]; then
  echo "images: IMAGE_TAG=latest names another image every day. Give a version." >&2
  exit 2
fi

# The Dockerfiles need BuildKit. A client since 23 brings it as the plugin buildx; an older one has it built in.
# The first on PATH may be a newer one without the plugin.
docker=
for candidate in $(type -ap docker); do
  major=$("$candidate" version --format '{{.Client.Version}}' 2>/dev/null | head -n 1 | cut -d. -f1)
  if "$candidate" buildx version > /dev/null 2>&1 || [ "${major:-99}" -lt 23 ]; then
    docker=$candidate
    break
  fi
done
if [ -z "$docker" ]; then
  echo "images: no docker client that can build is on PATH. Install docker.io, or Docker's buildx plugin." >&2
  exit 2
fi
