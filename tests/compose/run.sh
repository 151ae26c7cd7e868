#!/usr/bin/env bash
# docker compose up, as a newcomer would: build, start, enroll, identify, start again, find the gallery still there.
#   tests/compose/run.sh [PHOTO]     a photo of one face; default: the portrait that scikit-image ships
# Skips where there is no Docker Engine. Containers, networks and volumes are removed at the end; the images stay, so
# that the next run need not fetch the packages again.
export COMPOSE_HTTP_TIMEOUT=${COMPOSE_HTTP_TIMEOUT:-300}  # a busy engine takes longer than a minute to make a container
set -euo pipefail
photo=${1:+$(realpath "$1")}
cd "$(dirname "$0")/../.."

if ! docker info >/dev/null 2>&1; then
  echo 'skipped: no Docker Engine answers (docker info fails)'
  exit 0
fi
if ! docker compose version >/dev/null 2>&1; then
  echo 'skipped: the Docker client has no Compose (docker compose version fails)'
  exit 0
fi

export COMPOSE_PROJECT_NAME=facegallery-test FACEGALLERY_PUBLISH=${FACEGALLERY_PUBLISH:-18000}
url=http://127.0.0.1:$FACEGALLERY_PUBLISH
folder=$(mktemp -d)

remove() {
  docker compose down --volumes --remove-orphans --timeout 20
}

finish() {
  status=$?
  [ "$status" = 0 ] || docker compose logs --tail 40 || true
  remove >/dev/null 2>&1 || { echo 'FAILED to remove what was started' >&2; status=1; }
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT

if [ -z "$photo" ]; then
  photo=$folder/astronaut.jpg
  "${PYTHON:-.venv/bin/python}" -c \
    'import sys, PIL.Image, skimage.data as d; PIL.Image.fromarray(d.astronaut()).save(sys.argv[1])' "$photo"
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
  if ! grep --quiet --fixed-strings -- "$2" <<<"$3"; then
    echo "FAILED $1: expected $2 in: $3" >&2
    exit 1
  fi
  echo "ok     $1"
}

inside() { # a line of Python in the service's container
  docker compose exec -T facegallery python -c "$1"
}

root=$PWD
as_said() { # by the document, in the line that begins so
  (cd "$folder" && COMPOSE_FILE=$root/compose.yaml bash -euo pipefail -c \
    "$(grep --only-matching --max-count 1 -- "$2[^\`]*" "$root/docs/$1")")
}

remove >/dev/null 2>&1 || true # what a killed run left
docker compose build
docker compose up --detach
wait_until_ready
expect 'asks for a key' '/problems/unauthorized' "$(curl --silent "$url/galleries")"
key=$(docker compose logs --no-log-prefix facegallery 2>&1 | grep -oxE 'fg_[0-9a-f]{12}_[0-9a-f]{64}')
call() { # curl's words
  curl --silent --header @- "$@" <<<"Authorization: Bearer $key" # not among the process's arguments
}
expect 'the first key is for everything' '"galleries":[]' "$(call "$url/galleries")"
expect 'nobody is known yet' '/problems/gallery-not-found' "$(call --form image=@"$photo" "$url/identify")"
expect 'enroll' '"enrolled":[{"photo"' "$(call --form subject=eileen --form images=@"$photo" "$url/enroll")"
expect 'identify' '"identity":{"subject":"eileen"' "$(call --form image=@"$photo" "$url/identify")"
expect 'not an image' '/problems/unsupported-image' "$(call --form image=@"$0" "$url/identify")"

docker compose down --timeout 20
docker compose up --detach
wait_until_ready
expect 'the gallery is still there' '"identity":{"subject":"eileen"' \
  "$(call --form image=@"$photo" "$url/identify")"
expect 'a second start prints no key' '1' \
  "$(docker compose exec -T facegallery facegallery keys list --json | grep -o '"first key"' | wc -l)"
expect 'a key is made by command' 'fg_' \
  "$(docker compose exec -T facegallery facegallery keys create door --scope identify 2>/dev/null)"
expect 'the audit log is whole' ' 0 flaws' "$(docker compose exec -T facegallery facegallery audit verify)"

as_said moving.md 'docker compose exec -T database pg_dump'
as_said operations.md 'docker compose exec -T facegallery sh -c'
expect 'the vault is backed up' 'SQLite format 3' "$(head --bytes 15 "$folder/vault-new.db")"
call --form subject=later --form images=@"$photo" "$url/enroll" >/dev/null
expect 'somebody comes after the backup' '"subject":"later"' "$(call "$url/galleries/default/subjects")"
for line in stop 'exec -T database dropdb' 'exec -T database createdb' 'exec -T database pg_restore' 'run --rm' 'up --detach'; do
  as_said moving.md "docker compose $line"
done
wait_until_ready
expect 'a restore takes the gallery back' 'eileen, not later' \
  "$(call "$url/galleries/default/subjects" | grep -o '"subject":"[a-z]*"' | tr -d '\n' | sed 's/^"subject":"eileen"$/eileen, not later/')"
expect 'and whoever was there is known' '"identity":{"subject":"eileen"' "$(call --form image=@"$photo" "$url/identify")"

expect 'runs as a plain user' '10001 10001' "$(inside 'import os; print(os.getuid(), os.getgid())')"
expect 'has no torch' 'None' "$(inside 'import importlib.util as u; print(u.find_spec("torch"))')"
expect 'its files are read-only' 'Read-only' "$(inside 'open("/opt/venv/x", "w")' 2>&1 || true)"
expect 'the database is on no network' 'refused' \
  "$(inside 'import socket; socket.create_connection(("database", 5432), 5)' 2>&1 || true)"

container=$(docker compose ps --quiet facegallery)
for _ in $(seq 40); do
  health=$(docker inspect --format '{{.State.Health.Status}}' "$container")
  [ "$health" = healthy ] && break
  sleep 1
done
expect 'is healthy' 'is healthy' "is $health"
expect 'its vault is in a volume with a name' "$COMPOSE_PROJECT_NAME"_data "$(docker inspect --format \
  '{{range .Mounts}}{{if eq .Destination "/data"}}{{.Name}}{{end}}{{end}}' "$container")"

image=$(docker image inspect --format '{{.Size}}' "$(docker inspect --format '{{.Image}}' "$container")")
base=$(docker image inspect --format '{{.Size}}' python:3.11-slim)
echo "ok     the image adds $(((image - base) / 1000000)) MB to its base"
