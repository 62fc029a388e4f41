// Command kubelb-backend-ebpf is the eBPF dataplane as a plugin: the manager starts it with --backend=ebpf.
package main

import (
	"kubelb.k8c.io/backends/ebpf"
	"kubelb.k8c.io/backends/plugin"
)

func main() { plugin.Serve(&ebpf.Backend{}) }
