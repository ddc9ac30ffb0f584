#!/usr/bin/env bash
# Refuses files that work on one machine only: paths of somebody's machine, hosts of package registries
# (a mirror is configured in pip, never here), and private keys (tests make their own).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PATTERN='(pypi|pythonhosted|npmjs|crates|debian)\.(org|com|io)|/(home|root|work|Users)/[a-z]|-----BEGIN [A-Z ]*PRIVATE'

# Without git (a source archive) every file counts that is not generated.
files() {
    git ls-files -z --cached --others --exclude-standard 2>/dev/null ||
        find . -type d \( -name '.*_cache' -o -name .venv -o -name .hypothesis -o -name __pycache__ -o -name build \) \
            -prune -o -type f -print0
}

found=$(files | xargs -0 grep -nIEs -e "$PATTERN" -- || true)
if [ -n "$found" ]; then
    printf '%s\n' "$found" 'portable: these lines tie the project to one machine or registry; say it another way' >&2
    exit 1
fi
