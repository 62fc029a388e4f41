// Package cluster runs real Kubernetes clusters on one machine: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, and nodes with kubelet, containerd and kube-proxy, each in a network namespace of its own.
//
// All of it lives in a process and a mount namespace of its own (Isolate). When the program that made it ends, in whatever
// way, the kernel ends every process, mount and network namespace with it; only a scratch directory and cgroups can stay,
// and the next start removes those.
package cluster
