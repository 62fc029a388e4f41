// Package ebpf is the eBPF dataplane. Its programs run at the ingress of every interface. They forward packets for VIPs and the answers of endpoints before any
// other part of the kernel handles them.
//
// The programs (package bpf) read the maps that the plugin writes, and keep flows in other maps. Maps, programs and the links that attach them are pinned in the
// BPF file system, so that they outlive the plugin (kernel.go).
package ebpf
