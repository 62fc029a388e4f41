#!/usr/bin/env bash
# build.sh [NAME...]: builds real Kubernetes components from Go modules and prints the folder that holds them.
#
# The folder lies outside the checkout, under $KUBELB_CACHE (default ~/.cache/kubelb), and is named by what the
# binaries depend on, so that a second call finds them finished. Cold, all of them take about ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off

kubernetes_version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
key=$(cat go.mod go.sum build.sh <(go version) | sha256sum | cut -c1-12)
bin="${KUBELB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubelb}/kubernetes/$kubernetes_version-$key"
mkdir -p "$bin"

package_of() {
  case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    agnhost) echo k8s.io/kubernetes/test/images/agnhost ;;
    *) echo "k8s.io/kubernetes/cmd/$1" ;;
  esac
}

# Kubernetes reads its own version from these variables; kubectl and the kubelet's node status refuse an unparsable one.
version_flags() {
  local release=${kubernetes_version#v} package
  local minor=${release#*.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s -X %s.gitTreeState=clean' \
      "$package" "$kubernetes_version" "$package" "${release%%.*}" "$package" "${minor%%.*}" "$package"
    printf ' -X %s.gitCommit=%040d -X %s.buildDate=1970-01-01T00:00:00Z' "$package" 0 "$package"
  done
}

names=("$@")
[ ${#names[@]} -gt 0 ] || names=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl agnhost)
flags="-s -w$(version_flags)"

exec 9>"$bin/.lock"
flock 9
for name in "${names[@]}"; do
  [ -x "$bin/$name" ] && continue
  start=$SECONDS
  echo "building $name $kubernetes_version (cached in $bin) ..." >&2
  go build -ldflags "$flags" -o "$bin/$name.partial" "$(package_of "$name")"
  mv "$bin/$name.partial" "$bin/$name"
  echo "built $name in $((SECONDS - start)) s" >&2
done
echo "$bin"
