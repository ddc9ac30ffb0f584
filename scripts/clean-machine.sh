#!/usr/bin/env bash
# Proves that a clean machine works: a fresh Debian 12 with nothing but what the README asks for, a fresh clone of
# the last commit, an empty home, and the commands of the README as they stand there.
#
#   scripts/clean-machine.sh [run] [check] [test]    these targets of make, in this order; without any: run test
#
# Rules of this file: needs root (it makes a root file system and mounts) and mmdebstrap. Mounts and processes live
# in namespaces of their own, so nothing is left of them however this script ends; the files are removed at the end,
# unless KEEP=1. Every step is bounded. How the machine reaches its package registries (apt sources, pip and npm
# configuration, certificates, proxies) is copied into the root and written nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly SUITE=bookworm
# What "Debian 12 with Python 3.11 and make" is, and git for the clone. minbase has no certificates.
readonly PACKAGES=ca-certificates,git,make,python3
readonly LOGS=build/clean-machine
# Bounds, in seconds: the root file system, and each step.
readonly ROOT_LIMIT_S=600 STEP_LIMIT_S=${STEP_LIMIT_S:-2400} SHOW_LIMIT_S=600 STOP_LIMIT_S=30
# What tells clients where registries are and whom to trust.
readonly CLIENT_FILES='/etc/ssl/certs/ca-certificates.crt /etc/resolv.conf /etc/hosts'
readonly PIP_FILES="$HOME/.config/pip/pip.conf $HOME/.pip/pip.conf /etc/pip.conf"
readonly NPM_FILES="/etc/npmrc /usr/etc/npmrc /usr/local/etc/npmrc $HOME/.npmrc"
readonly CLIENT_VARIABLES='^(PIP_[A-Z_]+|NPM_CONFIG_[A-Z_]+|npm_config_[a-z_]+|[A-Z_]*CA_(BUNDLE|CERTS|CAINFO)|SSL_CERT_(FILE|DIR)|GIT_SSL_CAINFO|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY)='

say() { printf 'clean-machine: %s\n' "$*" >&2; }
die() { say "$*"; exit "${CODE:-1}"; }

# --- outside: what is left to remove at the end -------------------------------------------------

outside() {
    [ "$(id -u)" -eq 0 ] || CODE=2 die 'run it as root: it makes a root file system'
    command -v mmdebstrap unshare git >/dev/null || CODE=2 die 'needs mmdebstrap and git: apt-get install mmdebstrap git'
    mkdir -p "$LOGS"
    root=$(mktemp -d "$PWD/$LOGS/root.XXXXXX")
    trap 'status=$?; trap - EXIT; remove; exit $status' EXIT
    trap 'exit 130' INT TERM HUP
    # In the background and waited for, so that a signal ends this script at once.
    unshare --mount --pid --fork --kill-child --uts --ipc --mount-proc -- "$0" --inside "$root" "$@" &
    namespaces=$!
    wait "$namespaces"
}

remove() {
    # The namespaces end with their first process, and everything in them with it.
    kill -KILL "$namespaces" 2>/dev/null || true
    wait "$namespaces" 2>/dev/null || true
    if [ "${KEEP:-0}" = 1 ]; then say "kept: $root"; return; fi
    rm -rf --one-file-system "$root"
}

# --- inside: the root file system ---------------------------------------------------------------

inside() {
    root=$1
    shift
    trap - INT
    build_root
    enter_root
    local step begin
    for step in "$@"; do
        begin=$SECONDS
        if [ "$step" = run ]; then show; else bounded "$step"; fi ||
            die "'make $step' failed on a clean machine; see $LOGS/$step.log"
        say "make $step: worked, $((SECONDS - begin)) s"
    done
    say 'everything worked'
}

build_root() {
    local sources file
    mapfile -t sources < <(apt_sources)
    say "Debian 12 ($PACKAGES) in $root"
    timeout "$ROOT_LIMIT_S" mmdebstrap --quiet --variant=minbase --include="$PACKAGES" "$SUITE" "$root" "${sources[@]}" \
        >"$LOGS/root.log" 2>&1 || die "mmdebstrap failed; $LOGS/root.log says why"
    for file in $CLIENT_FILES; do
        if [ -e "$file" ]; then install -D -m 644 "$file" "$root$file"; fi
    done
    # In places of the system, because the home is empty. pip reads no section twice, so it gets the nearest file.
    for file in $PIP_FILES; do
        if [ -e "$file" ]; then cp "$file" "$root/etc/pip.conf"; break; fi
    done
    for file in $NPM_FILES; do
        if [ -e "$file" ]; then { cat "$file"; echo; } >>"$root/etc/npmrc"; fi
    done
    git -c safe.directory='*' clone --quiet --no-local . "$root/srv/mcp-proxy"
    say "clone of $(git -C "$root/srv/mcp-proxy" log -1 --format='%h %s')"
}

# The machine's own sources, if it runs the same release; none, and so mmdebstrap's default, otherwise.
apt_sources() {
    if grep -qs "^VERSION_CODENAME=$SUITE$" /etc/os-release; then
        find /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources -type f 2>/dev/null || true
    fi
}

# Mounts what a machine has, and sets ``in_root``: the words that run a command in the clone.
enter_root() {
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    devices "$root/dev"
    hostname clean-machine

    # An empty home, and of the environment only what says how to reach registries.
    local environ=(HOME=/root "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" TERM=dumb LANG=C.UTF-8)
    if [ -e "$root/etc/npmrc" ]; then environ+=(NPM_CONFIG_GLOBALCONFIG=/etc/npmrc); fi
    mapfile -t -d '' -O "${#environ[@]}" environ < <(env -0 | grep -zE "$CLIENT_VARIABLES")
    rm -rf "$root/root"
    mkdir -m 700 "$root/root"
    in_root=(env -i "${environ[@]}" chroot "$root" /bin/sh -c 'cd /srv/mcp-proxy && exec "$@"' sh)
}

devices() {
    mount -t tmpfs -o mode=755,nosuid tmpfs "$1"
    local name
    for name in null zero full random urandom tty; do
        : >"$1/$name"
        mount --bind "/dev/$name" "$1/$name"
    done
    mkdir -p "$1/pts" "$1/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$1/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$1/shm"
    ln -s pts/ptmx "$1/ptmx"
    ln -s /proc/self/fd "$1/fd"
    ln -s fd/0 "$1/stdin"
    ln -s fd/1 "$1/stdout"
    ln -s fd/2 "$1/stderr"
}

# --- the steps ----------------------------------------------------------------------------------

bounded() {
    timeout --kill-after=30 "$STEP_LIMIT_S" "${in_root[@]}" make "$1" </dev/null >"$LOGS/$1.log" 2>&1 && return
    tail -n 40 "$LOGS/$1.log" >&2
    return 1
}

# `make run` stays up until Ctrl-C: wait for the invitation, do what it says, press Ctrl-C.
show() {
    local log=$LOGS/run.log until=$((SECONDS + SHOW_LIMIT_S)) curl
    # A session of its own, so that the signal of the terminal has a process group to go to; and in it nobody
    # ignores that signal, as processes in the background of a script do.
    setsid env --default-signal=INT "${in_root[@]}" make run </dev/null >"$log" 2>&1 &
    local leader=$!
    until grep -q 'Ctrl-C stops all of it' "$log"; do
        if ! kill -0 "$leader" 2>/dev/null || [ "$SECONDS" -ge "$until" ]; then
            tail -n 40 "$log" >&2
            return 1
        fi
        sleep 0.5
    done
    # A clean machine has no curl; its Python sends the same.
    curl=$(grep -m 1 '^ *curl ' "$log")
    "${in_root[@]}" .venv/bin/python - "$curl" >"$LOGS/curl.log" 2>&1 <<'PYTHON' || { cat "$LOGS/curl.log" >&2; return 1; }
import shlex, sys, urllib.request
words = shlex.split(sys.argv[1])
fields = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
url = next(word for word in words if word.startswith("http://"))
request = urllib.request.Request(url, words[words.index("-d") + 1].encode(), fields)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answer = opener.open(request, timeout=10).read().decode()
print(answer)
sys.exit(0 if '"replica"' in answer else 1)
PYTHON
    kill -INT -- "-$leader"
    for _ in $(seq $((STOP_LIMIT_S * 2))); do
        if ! kill -0 "$leader" 2>/dev/null; then
            # In this process namespace is nobody but this script and what it has started.
            if grep -qs 'mcp[_]proxy' /proc/[0-9]*/cmdline; then say 'processes are left behind'; return 1; fi
            return 0
        fi
        sleep 0.5
    done
    say "Ctrl-C did not end it within $STOP_LIMIT_S s"
    return 1
}

if [ "${1:-}" = --inside ]; then
    shift
    inside "$@"
else
    [ $# -gt 0 ] || set -- run test
    outside "$@"
fi
