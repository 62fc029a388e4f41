// Command kubelb-backend-envoy is the Envoy dataplane as a plugin: the manager starts it with --backend=envoy.
package main

import (
	"kubelb.k8c.io/backends/envoy"
	"kubelb.k8c.io/backends/plugin"
)

func main() { plugin.Serve(&envoy.Backend{}) }
