// Command init is the first process of a kernel under test, and, called as modprobe, what that kernel loads modules with.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"kubelb.k8c.io/tools/kernels/guest"
)

func main() {
	if filepath.Base(os.Args[0]) != "modprobe" {
		guest.Run()
		return
	}
	if err := guest.Modprobe(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "modprobe:", err)
		os.Exit(1)
	}
}
