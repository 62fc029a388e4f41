#!/usr/bin/env bash
# unpack.sh NAME: downloads packages of the distribution, unpacks them into the cache unless they are there, and prints the folder. They
# are not installed, since packages of servers start their servers. NAME is proxies (HAProxy, nginx), router (BIRD), monitoring
# (Prometheus) or libc (for Envoy in images).
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
  # The package lists may be outdated or missing.
  download || { apt-get update >/dev/null 2>&1 && download; } || { cat "$work/log" >&2; exit 1; }
  for package in "$work"/*.deb; do
    dpkg -x "$package" "$cache"
    dpkg-deb --show "$package" >>"$work/versions"
  done
  mv "$work/versions" "$cache/versions"
  touch "$cache/complete"
fi
echo "$cache"
