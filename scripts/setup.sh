#!/usr/bin/env bash
# Set-up behind the Makefile: a virtual environment in .venv, and the Debian packages that tests drive.
#
#   scripts/setup.sh python run|dev      the environment and what that purpose needs
#   scripts/setup.sh tools COMMAND...    commands that must exist; installs their packages
#
# Rules of this file: never ask, never start a service, never touch Python packages outside .venv; when
# something is missing that cannot be installed, stop with one sentence that says what to do.
set -euo pipefail
cd "$(dirname "$0")/.."

# Dependency groups need 25.1, pinned build requirements 25.3.
readonly PIP_REQUIREMENT='pip>=25.3'
readonly APT_LOG=build/apt.log
readonly POLICY=/usr/sbin/policy-rc.d

say() { printf '%s\n' "setup: $*" >&2; }
die() { say "$*"; exit 2; }

# --- Debian packages --------------------------------------------------------------------------

may_be_root() { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# apt_install PURPOSE PACKAGE...
#
# A package of a server would start it on its well-known port, now and at every boot, and nobody asked
# for that. So invoke-rc.d is told not to (unless the machine has a policy of its own, which then rules),
# and the units that arrive with these packages are disabled.
apt_install() {
    local purpose=$1 units_before unit
    shift
    if ! command -v apt-get >/dev/null || ! may_be_root; then
        die "$purpose needs $*: install with 'apt-get install $*' as root (or your system's equivalent), then run make again."
    fi
    say "installing $* for $purpose"
    mkdir -p "${APT_LOG%/*}"
    units_before=$(server_units)
    as_root apt-get update -qq </dev/null >&2 || say "apt-get update failed; trying with the package lists at hand"
    (
        if [ ! -e "$POLICY" ]; then
            trap 'as_root rm -f "$POLICY"' EXIT
            printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null || exit
            as_root chmod 755 "$POLICY" || exit
        fi
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$APT_LOG" 2>&1
    ) || die "apt-get could not install $* ($APT_LOG says why): install them yourself, then run make again."
    if [ -d /run/systemd/system ]; then
        for unit in $(comm -13 <(printf '%s\n' "$units_before") <(server_units)); do
            as_root systemctl disable --quiet "$unit"
        done
    fi
}

# Unit files of the servers that apt_install may bring, sorted, one to a line.
server_units() {
    local unit
    for unit in haproxy.service nginx.service prometheus.service redis-server.service; do
        if [ -e "/lib/systemd/system/$unit" ]; then echo "$unit"; fi
    done
}

# The package that brings a command; most are named like it.
package_of() {
    case $1 in
        ip) echo iproute2 ;;
        promtool) echo prometheus ;;
        systemd-nspawn) echo systemd-container ;;
        *) echo "$1" ;;
    esac
}

tools() {
    local tool missing=()
    for tool in "$@"; do
        command -v "$tool" >/dev/null || missing+=("$(package_of "$tool")")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install 'the test suite' "${missing[@]}"
}

# --- Python -----------------------------------------------------------------------------------

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Prints the first Python that is new enough. The absolute path is for shims on PATH that do not run.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
        if is_new_enough "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

# Debian ships Python without ensurepip; python3.N-venv brings it.
ensure_venv_module() {
    if "$1" -c 'import ensurepip' >/dev/null 2>&1; then return; fi
    apt_install 'the virtual environment' "$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
}

python_env() {
    local purpose=$1 python what
    case $purpose in
        run) what=(-e '.[demo]') ;;
        dev) what=(-e '.[demo,load]' --group dev) ;;
        *) die "unknown purpose '$purpose': run or dev" ;;
    esac
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python) ||
            die "Python 3.11 or newer is needed and not found: install it, or name it, as in 'make PYTHON=/path/to/python3.12 ...'."
        ensure_venv_module "$python"
        say "creating .venv with $python"
        "$python" -m venv --clear .venv
    fi
    say "installing packages for '$purpose' into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$PIP_REQUIREMENT"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        -c constraints.txt --build-constraint constraints.txt "${what[@]}"
    # Every purpose contains what `run` needs.
    touch .venv/.ready-run ".venv/.ready-$purpose"
}

command=${1:-}
shift || true
case $command in
    python) python_env "$@" ;;
    tools) tools "$@" ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
