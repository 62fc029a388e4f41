// Command kubelb-backend-example is the example dataplane as a plugin.
package main

import (
	"kubelb.k8c.io/backends/example"
	"kubelb.k8c.io/backends/plugin"
)

func main() { plugin.Serve(example.New()) }
