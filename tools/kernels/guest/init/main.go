// Command init is the first process of a kernel under test. The kernel also calls it as modprobe to load modules.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"kubelb.k8c.io/tools/kernels/guest"
)

func main() {
	var err error
	switch {
	case os.Getpid() == 1:
		guest.Run()
	case len(os.Args) == 2 && os.Args[1] == guest.Panic:
		err = guest.PanicNow()
	case filepath.Base(os.Args[0]) == "modprobe":
		err = guest.Modprobe(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
}
