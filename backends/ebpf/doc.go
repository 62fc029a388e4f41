// Package ebpf is the dataplane in the kernel's own hooks: programs at the ingress of every interface take packets for VIPs and
// the answers of endpoints, and send them on without any other part of the kernel seeing them.
//
// The programs (package bpf) read what the plugin writes into maps, and keep flows in others. Maps, programs and the links that
// attach them are pinned in the BPF file system, so that they outlive the plugin (kernel.go).
package ebpf
