#!/usr/bin/env bash
# Rolls an image out with the manifests of this tree, tries it, and goes back if it does not work.
#
#   scripts/release-deploy.sh IMAGE@sha256:DIGEST [OVERLAY]      default: k8s/overlays/production
#
#   NAMESPACE   default: mcp
#   TIMEOUT     how long a rollout may take, default: 10m
#   SMOKE       what is run against the proxy, with its URL behind; default: fifteen seconds of `mcp-proxy load`, whose
#               users call only what reads, and neither misbehave nor break connections
#   SMOKE_HEADER  a header of each of its requests ("Authorization: Bearer ..."), given to it as --header; default: none
#   SMOKE_PATH  the path of a route, default: /mcp
#
# Rules of this file: kubectl, its context and its rights are the caller's. Going back means: the configuration as it
# was (a ConfigMap has no history), then the Deployment's last revision. Whatever else the manifests have changed stays
# changed, and is said. Exit status 1 after going back, 2 before anything was touched.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly IMAGE=${1:-} OVERLAY=${2:-k8s/overlays/production}
readonly NAMESPACE=${NAMESPACE:-mcp} TIMEOUT=${TIMEOUT:-10m} SMOKE_PATH=${SMOKE_PATH:-/mcp}
# The only name that the manifests know the image by.
readonly NAME=ghcr.io/mcp-proxy/mcp-proxy
readonly WORK=build/deploy
# Nobody here breaks a connection: kubectl may end the whole forward for one that was reset.
readonly MIX=session=6,modern=3
readonly SMOKE=${SMOKE:-.venv/bin/mcp-proxy load --shape smoke --mix $MIX --read-only --report $WORK/smoke}
readonly SMOKE_HEADER=${SMOKE_HEADER:-}
# A credential: none of kubectl's business.
export -n SMOKE_HEADER

say() { printf '%s\n' "deploy: $*" >&2; }
kube() { kubectl --namespace "$NAMESPACE" "$@"; }

if [[ ! $IMAGE =~ ^([a-z0-9./:_-]+)@(sha256:[0-9a-f]{64})$ ]] || [ ! -f "$OVERLAY/kustomization.yaml" ]; then
    say "usage: release-deploy.sh IMAGE@sha256:DIGEST [OVERLAY]"
    exit 2
fi
repository=${BASH_REMATCH[1]} digest=${BASH_REMATCH[2]}

# --- what is to be there --------------------------------------------------------------------------------

rm -rf "$WORK"
mkdir -p "$WORK"
cat >"$WORK/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [$(realpath --relative-to="$WORK" "$OVERLAY")]
images: [{name: $NAME, newName: $repository, digest: "$digest"}]
YAML
kubectl kustomize "$WORK" >"$WORK/manifests.yaml" || { say "the manifests cannot be rendered"; exit 2; }
if ! grep -qF "image: $IMAGE" "$WORK/manifests.yaml" || grep -F "image: $NAME:" "$WORK/manifests.yaml" >&2; then
    say "the manifests do not run $IMAGE"
    exit 2
fi

# --- what was there -------------------------------------------------------------------------------------

revision_of() {
    kube get deployment mcp-proxy --ignore-not-found \
        --output jsonpath='{.metadata.annotations.deployment\.kubernetes\.io/revision}'
}
before=$(revision_of) || { say "the cluster cannot be asked"; exit 2; }
configuration=$(kube get configmap mcp-proxy --ignore-not-found --output jsonpath='{.data}') || exit 2

go_back() {
    say "$1"
    kube get pods --selector app.kubernetes.io/name=mcp-proxy --output wide >&2 || true
    kube logs --selector app.kubernetes.io/name=mcp-proxy --tail 20 --prefix >&2 || true
    if [ -z "$before" ]; then
        say "there was no release before this one: nothing to go back to"
        exit 1
    fi
    if [ -n "$configuration" ]; then
        kube patch configmap mcp-proxy --type json \
            --patch "[{\"op\": \"replace\", \"path\": \"/data\", \"value\": $configuration}]" ||
            say "the configuration could not be put back"
    fi
    if [ "$(revision_of)" = "$before" ]; then
        say "the pods have not changed; the configuration is what it was"
    else
        if ! kube rollout undo deployment/mcp-proxy --to-revision "$before" ||
            ! kube rollout status deployment/mcp-proxy --timeout "$TIMEOUT"; then
            say "going back did not work either: somebody has to look at it"
            exit 1
        fi
        say "back at what was revision $before; other objects stay as they were applied: deploy the tag before to have them back"
    fi
    exit 1
}

# --- there it goes --------------------------------------------------------------------------------------

# Server-side: what the manifests do not name (replicas are the autoscaler's) is left alone. Forced, because going back
# makes kubectl the owner of the fields that it has changed, and the next deployment would find a conflict.
kubectl apply --server-side --force-conflicts --field-manager mcp-proxy-deploy --filename "$WORK/manifests.yaml" ||
    go_back "the manifests could not be applied"
kube rollout status deployment/mcp-proxy --timeout "$TIMEOUT" || go_back "the rollout did not finish within $TIMEOUT"

# From here on, whatever else goes wrong is a reason to go back, too.
trap 'trap - ERR; go_back "line $LINENO of this script failed"' ERR

read -ra smoke <<<"$SMOKE"
# Behind the splitting at spaces: a header has some.
[ -z "$SMOKE_HEADER" ] || smoke+=(--header "$SMOKE_HEADER")
forward=
trap '[ -z "$forward" ] || { kill "$forward" 2>/dev/null && wait "$forward"; } || true' EXIT

# A forwarded port needs no public name and no gateway, and no credentials but those of the deployment itself and, where
# servers want some, SMOKE_HEADER.
forwarded() {
    : >"$WORK/forward.log"
    kubectl --namespace "$NAMESPACE" port-forward service/mcp-proxy :80 >"$WORK/forward.log" 2>&1 &
    forward=$!
    for _ in $(seq 100); do
        port=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$WORK/forward.log") || return 1
        if [ -n "$port" ]; then return 0; fi
        kill -0 "$forward" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}
works() {
    forwarded || go_back "no port of the Service could be forwarded: $(cat "$WORK/forward.log")"
    "${smoke[@]}" "http://127.0.0.1:$port$SMOKE_PATH"
}
# A forward that has died says nothing of the release: once more, through another one.
if ! works; then
    if kill -0 "$forward" 2>/dev/null; then go_back "the smoke test failed"; fi
    say "the forwarded port was lost during the smoke test: once more"
    works || go_back "the smoke test failed, after a forwarded port was lost"
fi
say "$IMAGE runs"
