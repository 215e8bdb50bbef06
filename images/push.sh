#!/usr/bin/env bash
# Push the images and write down their digests, which `make compile-pipeline` pins the tasks to: images/push.sh [FILE]
#
# A digest exists once a registry has stored an image; a tag can be moved afterwards, a digest cannot.
set -euo pipefail
cd "$(dirname "$0")/.."
. images/docker.sh

file=${1:-images/digests.json}
entries=()
for name in pipeline trainer; do
  "$docker" push --quiet "$registry/$name:$tag" > /dev/null
  # An image that was pushed to several registries has a digest for each.
  pinned=$("$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$registry/$name:$tag" \
    | grep -F "$registry/$name@sha256:" | head -n 1 || true)
  if ! [[ ${pinned##*@} =~ ^sha256:[0-9a-f]{64}$ ]]; then
    echo "images: $registry stored $name:$tag without telling its digest. Pull it, then push again." >&2
    exit 1
  fi
  entries+=("\"$name\": \"$pinned\"")
  echo "images: $pinned"
done
printf '{%s, %s}\n' "${entries[@]}" > "$file.partial"
mv "$file.partial" "$file"
