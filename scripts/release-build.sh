#!/usr/bin/env bash
# Builds what is published: sdist, wheel, bill of materials and checksums.
#
#   scripts/release-build.sh [FOLDER]     default: dist; earlier distributions in it go
#
# Rules of this file: nothing is built twice in the same way. Two copies of the tree, in folders of different
# names, with different permissions and dates, must give the same bytes: then anybody who has the commit can
# check what was published. The wheel is made from the sdist, so that the sdist is known to be whole, and is
# installed into an empty environment, so that its dependencies are known to be.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=$(realpath -m "${1:-dist}")
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
WORK=$(mktemp -d)
readonly OUT PYTHON WORK
trap 'rm -rf "$WORK"' EXIT

say() { printf '%s\n' "release: $*" >&2; }

# What git tracks or would track; without git (an unpacked sdist), all but what is generated.
files() {
    git ls-files -z --cached --others --exclude-standard 2>/dev/null ||
        find . -type d \( -name '.*_cache' -o -name .venv -o -name .hypothesis -o -name __pycache__ -o -name build -o -name dist \) \
            -prune -o -type f ! -path ./PKG-INFO -print0
}

# build NAME UMASK DATE: a copy of the tree, and the two distributions of it in its dist/.
build() {
    local tree=$WORK/$1
    mkdir -p "$tree"
    (
        umask "$2"
        # A file that git still tracks may be gone.
        files | while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
            tar --null --files-from=- --create --file=- | tar --extract --no-same-permissions --file=- --directory="$tree"
        find "$tree" -exec touch --no-dereference --date="$3" {} +
        "$PYTHON" -m build --no-isolation --outdir "$tree/dist" "$tree" >"$WORK/$1.log" 2>&1
    ) || { tail -n 20 "$WORK/$1.log" >&2; say "the build failed"; exit 1; }
}

build one 022 '2020-01-02 03:04:05'
build another-tree 077 '2031-06-07 08:09:10'
if ! diff -r "$WORK/one/dist" "$WORK/another-tree/dist"; then
    say "two builds of the same tree differ"
    exit 1
fi
"$PYTHON" scripts/release_dist.py "$WORK/one/dist"

# Without the extras: what `pip install mcp-reverse-proxy` gives.
"$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-input --only-binary :all: -c constraints.txt \
    --wheel-dir "$WORK/wheels" "$WORK"/one/dist/*.whl
"$PYTHON" -m venv --without-pip "$WORK/empty"
"$PYTHON" -m pip --python "$WORK/empty/bin/python" install --quiet --disable-pip-version-check --no-input --no-index \
    --find-links "$WORK/wheels" mcp-reverse-proxy
expected=$(scripts/release.py version)
# From a folder in which no source can be imported by chance.
said=$(cd "$WORK/empty" && bin/mcp-proxy version)
if [ "$said" != "mcp-proxy $expected" ]; then
    say "the installed command says '$said' and not 'mcp-proxy $expected'"
    exit 1
fi

mkdir -p "$OUT"
rm -f "$OUT"/*.whl "$OUT"/*.tar.gz "$OUT"/*.cdx.json "$OUT/SHA256SUMS"
cp "$WORK"/one/dist/* "$OUT"
"$PYTHON" scripts/sbom.py mcp-reverse-proxy "$WORK"/empty/lib/python3.*/site-packages "$WORK/wheels" \
    >"$OUT/mcp-reverse-proxy-$expected.cdx.json"
(cd "$OUT" && sha256sum -- *.whl *.tar.gz *.cdx.json >SHA256SUMS)
cat "$OUT/SHA256SUMS"
