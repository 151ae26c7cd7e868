#!/usr/bin/env bash
# docker compose up, as a newcomer would: build, start, enroll, identify, start again, find the gallery still there.
#   tests/compose/run.sh [PHOTO]     a photo of one face; default: the portrait that scikit-image ships
# Skips where there is no Docker Engine. Everything it made is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! docker info >/dev/null 2>&1; then
  echo 'skipped: no Docker Engine answers (docker info fails)'
  exit 0
fi

export COMPOSE_PROJECT_NAME=facegallery-test FACEGALLERY_PUBLISH=${FACEGALLERY_PUBLISH:-18000}
url=http://127.0.0.1:$FACEGALLERY_PUBLISH
folder=$(mktemp -d)

finish() {
  status=$?
  [ "$status" = 0 ] || docker compose logs --tail 40 || true
  docker compose down --volumes --timeout 20 >/dev/null 2>&1 || true
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT

photo=${1:-$folder/astronaut.jpg}
if [ $# = 0 ]; then
  .venv/bin/python -c 'import sys, PIL.Image, skimage.data as d; PIL.Image.fromarray(d.astronaut()).save(sys.argv[1])' "$photo"
fi

wait_until_ready() {
  for _ in $(seq 120); do
    curl --silent --fail "$url/readyz" >/dev/null && return
    sleep 1
  done
  echo 'the service did not become ready' >&2
  return 1
}

expect() { # what, wanted, text
  if ! grep --quiet --fixed-strings "$2" <<<"$3"; then
    echo "FAILED $1: expected $2 in: $3" >&2
    exit 1
  fi
  echo "ok     $1"
}

docker compose build
docker compose up --detach
wait_until_ready
expect 'enroll' '"enrolled":[{"photo"' "$(curl --silent --form subject=eileen --form images=@"$photo" "$url/enroll")"
expect 'identify' '"identity":{"subject":"eileen"' "$(curl --silent --form image=@"$photo" "$url/identify")"
expect 'not an image' '/problems/unsupported-image' "$(curl --silent --form image=@"$0" "$url/identify")"

docker compose down --timeout 20
docker compose up --detach
wait_until_ready
expect 'the gallery is still there' '"identity":{"subject":"eileen"' "$(curl --silent --form image=@"$photo" "$url/identify")"

container=$(docker compose ps --quiet facegallery)
expect 'runs as a plain user' '10001' "$(docker exec "$container" id -u)"
expect 'has no torch' 'None' "$(docker exec "$container" python -c 'import importlib.util as u; print(u.find_spec("torch"))')"
for _ in $(seq 40); do
  health=$(docker inspect --format '{{.State.Health.Status}}' "$container")
  [ "$health" = healthy ] && break
  sleep 1
done
expect 'is healthy' 'healthy' "$health"

image=$(docker image inspect --format '{{.Size}}' facegallery:0.1.0)
base=$(docker image inspect --format '{{.Size}}' python:3.11-slim)
echo "ok     the image adds $(((image - base) / 1000000)) MB to its base"
