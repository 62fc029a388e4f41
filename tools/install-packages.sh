#!/usr/bin/env bash
# install-packages.sh [emulators]: installs missing packages of the distribution (Debian, Ubuntu; as root): those for tests and the demo, or, with
# "emulators", those with which tools/kernels boots kernels.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || missing+=("$2"); }
if [ "${1:-}" = emulators ]; then
  need qemu-system-x86_64 qemu-system-x86
  need qemu-system-aarch64 qemu-system-arm
  need xz xz-utils
else
  need containerd containerd
  need runc runc
  need /usr/lib/cni/bridge containernetworking-plugins
  need nft nftables
  need ip iproute2
  need curl curl
  need node nodejs
  need unshare util-linux
  need python3 python3
  # The version of clang that compiled the committed objects of the eBPF programs.
  need clang-14 clang-14
  need llvm-strip-14 llvm-14
  need /usr/include/bpf/bpf_helpers.h libbpf-dev
  python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
fi
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing ${missing[*]} ..." >&2
if ! command -v apt-get >/dev/null; then
  echo "apt-get is missing: install ${missing[*]} by hand" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -20 "$log" >&2
  exit 1
fi
