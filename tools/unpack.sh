#!/usr/bin/env bash
# proxies.sh: sees that HAProxy and nginx, as the distribution builds them, are in the cache, and prints the directory that they are
# unpacked in. They are not installed: packages of servers start them.
set -euo pipefail
packages=(haproxy nginx libnginx-mod-stream liblua5.3-0 libopentracing-c-wrapper0 libopentracing1)
cache=${KUBELB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelb}/proxies
if [ ! -e "$cache/complete" ]; then
  echo "fetching HAProxy and nginx ..." >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && apt-get download "${packages[@]}" >/dev/null 2>log) || { cat "$work/log" >&2; echo "run 'apt-get update' and try again" >&2; exit 1; }
  for package in "$work"/*.deb; do dpkg -x "$package" "$cache"; done
  touch "$cache/complete"
fi
echo "$cache"
