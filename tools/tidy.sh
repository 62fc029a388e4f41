#!/usr/bin/env bash
# tidy.sh MODULE...: runs go mod tidy in the modules, and raises each third-party module to the highest version that any of them
# requires. So each module builds with the same versions in the workspace and outside of it.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off GOFLAGS=-mod=mod
requires() { awk '/^require \(/{r=1;next} /^\)/{r=0} r&&NF>=2&&$1!~/^kubelb/{print $1, $2} /^require [^(]/&&$2!~/^kubelb/{print $2, $3}' "$1/go.mod"; }
for _ in 1 2 3 4 5; do
  for m in "$@"; do (cd "$m" && go mod tidy); done
  highest=$(for m in "$@"; do requires "$m"; done | sort -k1,1 -k2,2V | awk '{v[$1]=$2} END{for (p in v) print p, v[p]}')
  changed=
  for m in "$@"; do
    raise=$(requires "$m" | while read -r path version; do
      want=$(awk -v p="$path" '$1==p{print $2}' <<<"$highest")
      [ "$want" = "$version" ] || echo "$path@$want"
    done)
    if [ -n "$raise" ]; then
      changed=yes
      echo "$m: $raise" | tr '\n' ' '; echo
      (cd "$m" && go get $raise 2>/dev/null)
    fi
  done
  [ -n "$changed" ] || exit 0
done
echo "the versions still change after five rounds: compare the go.mod files" >&2
exit 1
