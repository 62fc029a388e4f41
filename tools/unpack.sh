#!/usr/bin/env bash
# unpack.sh NAME: sees that programs, as the distribution builds them, are in the cache, and prints the directory that they are unpacked
# in. They are not installed: packages of servers start them. NAME is proxies (HAProxy, nginx), router
# (BIRD), monitoring (Prometheus) or libc (that Envoy is linked to, for images).
set -euo pipefail
case ${1:-} in
  proxies) packages=(haproxy nginx libnginx-mod-stream liblua5.3-0 libopentracing-c-wrapper0 libopentracing1) ;;
  router) packages=(bird2 libssh-gcrypt-4 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1) ;;
  monitoring) packages=(prometheus) ;;
  libc) packages=(libc6) ;;
  *) echo "usage: tools/unpack.sh proxies|router|monitoring|libc" >&2; exit 2 ;;
esac
cache=${KUBELB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelb}/$1
if [ ! -e "$cache/complete" ]; then
  echo "fetching ${packages[0]} ..." >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  download() { (cd "$work" && apt-get download "${packages[@]}" >/dev/null 2>log); }
  # The lists may be old, or not there at all.
  download || { apt-get update >/dev/null 2>&1 && download; } || { cat "$work/log" >&2; exit 1; }
  for package in "$work"/*.deb; do
    dpkg -x "$package" "$cache"
    dpkg-deb --show "$package" >>"$work/versions"
  done
  mv "$work/versions" "$cache/versions"
  touch "$cache/complete"
fi
echo "$cache"
