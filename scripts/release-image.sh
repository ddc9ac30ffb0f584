#!/usr/bin/env bash
# Runs an image as it is meant to be run (no privileges, nothing writable, no network but its ports) and asks it who it
# is and whether it lives.
#
#   scripts/release-image.sh IMAGE [PLATFORM]
#
# Rules of this file: what it starts, it stops; exit status 1 with one sentence for whatever is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${1:?usage: release-image.sh IMAGE [PLATFORM]}
PLATFORM=${2:-linux/amd64}
ADMIN_PORT=${ADMIN_PORT:-9901}
readonly IMAGE PLATFORM ADMIN_PORT
readonly RUN=(docker run --platform "$PLATFORM" --read-only --cap-drop ALL --security-opt no-new-privileges)

die() { printf '%s\n' "release: $IMAGE on $PLATFORM: $*" >&2; exit 1; }

expected="mcp-proxy $(scripts/release.py version)"
said=$("${RUN[@]}" --rm --network none "$IMAGE" version)
[ "$said" = "$expected" ] || die "says '$said' and not '$expected'"

container=$("${RUN[@]}" --detach --publish "127.0.0.1:$ADMIN_PORT:9901" --env MCP_PROXY_ADMIN_TOKEN=of-a-smoke-test \
    "$IMAGE" serve --listen 0.0.0.0:8080 --admin 0.0.0.0:9901 http://127.0.0.1:9/mcp)
trap 'docker rm --force "$container" >/dev/null' EXIT
# Emulated, a start takes its time.
if ! curl --silent --fail --max-time 5 --retry 30 --retry-delay 1 --retry-all-errors \
    --output /dev/null "http://127.0.0.1:$ADMIN_PORT/livez"; then
    docker logs "$container" >&2
    die "does not live"
fi
