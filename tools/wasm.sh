#!/usr/bin/env bash
# wasm.sh [bench]: runs the core's tests natively and as WebAssembly in wazero, and requires that the same cases pass. With bench it
# measures in both one translation of 10,000 Services on 1,000 nodes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/bin"
export GOWORK=off
(cd "$root/tools" && go build -o "$root/bin/" github.com/tetratelabs/wazero/cmd/wazero)
wasm() { GOOS=wasip1 GOARCH=wasm go test -exec="$root/bin/wazero run -mount=/:/ -env-inherit" "$@"; }

cd "$root/core"
if [ "${1:-}" = bench ]; then
  go test -run='^$' -bench=Translate -benchmem -count=5 ./translate
  GOGC=400 wasm -run='^$' -bench=Translate -benchmem -count=5 ./translate # the same value as in core.wasm
  exit
fi

# passed prints the cases that passed, one a line. After a failure it prints the whole output.
passed() {
  local output
  output=$("$@" -v ./... 2>&1) || { echo "$output" >&2; return 1; }
  grep -oE '^ *--- PASS: [^ ]+' <<<"$output" | sort
}
native=$(passed go test)
compiled=$(passed wasm)
diff <(echo "$native") <(echo "$compiled") || { echo "different cases passed natively (<) and as WASM (>)" >&2; exit 1; }
echo "core: $(wc -l <<<"$native") cases passed natively, and the same as WASM"
