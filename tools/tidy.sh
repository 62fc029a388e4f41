#!/usr/bin/env bash
# tidy.sh MODULE...: tidies the modules and brings each third-party module to the highest version that any of them needs,
# so that the workspace builds what each module builds by itself.
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
echo "versions did not settle; look at the go.mod files" >&2
exit 1
