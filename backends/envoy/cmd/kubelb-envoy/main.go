// Command kubelb-envoy owns an Envoy for the Envoy dataplane.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"kubelb.k8c.io/backends/envoy/supervisor"
)

const usage = `kubelb-envoy starts Envoy and keeps it running. Envoy gets its resources from the plugin of the Envoy dataplane, over a socket in
the state directory, and keeps serving them while the plugin does not run. SIGHUP replaces Envoy, without refusing a connection,
if its binary or its configuration has changed. SIGTERM ends both.

Flags:
`

func main() {
	// The kernel sends SIGTERM to Envoy when the thread that started it ends.
	runtime.LockOSThread()
	set := flag.NewFlagSet("kubelb-envoy", flag.ExitOnError)
	set.Usage = func() {
		fmt.Fprint(set.Output(), usage)
		set.PrintDefaults()
	}
	dir := set.String("state-dir", "", "the directory that it shares with the plugin, with sockets, bootstrap and log (required)")
	envoy := set.String("envoy", "", "Envoy's binary; if it is empty, the one that the plugin names")
	_ = set.Parse(os.Args[1:]) // it exits on an error
	if *dir == "" {
		fmt.Fprintln(os.Stderr, "kubelb-envoy: --state-dir is empty: name the directory that the plugin uses")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	replace := make(chan os.Signal, 1)
	signal.Notify(replace, syscall.SIGHUP)
	err := supervisor.Run(ctx, supervisor.Options{Dir: supervisor.Dir(*dir), Envoy: *envoy, Replace: replace})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelb-envoy:", err)
		os.Exit(1)
	}
}
