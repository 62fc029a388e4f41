// Command kubelb-backend-nftables is the nftables dataplane as a plugin: the manager starts it with --backend=nftables.
package main

import (
	"kubelb.k8c.io/backends/nftables"
	"kubelb.k8c.io/backends/plugin"
)

func main() { plugin.Serve(&nftables.Backend{}) }
