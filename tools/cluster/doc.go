// Package cluster runs real Kubernetes clusters on one machine: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, and nodes with kubelet, containerd and kube-proxy, each in a network namespace of its own.
//
// The clusters run in process and mount namespaces of their own (Isolate). When the program that made them ends in any way,
// the kernel ends their processes, mounts and network namespaces. Only a scratch directory and cgroups may stay, which the
// next start removes.
package cluster
