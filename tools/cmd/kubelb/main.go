// Command kubelb is the users' command line.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	if err := rootCommand().Execute(); err != nil {
		if !errors.Is(err, errRefused) {
			fmt.Fprintln(os.Stderr, "kubelb:", err)
		}
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "kubelb",
		Short:         "Layer-4 load balancers for fleets of Kubernetes clusters",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(statusCommand(), explainCommand(), traceCommand(), poolsCommand(), bundleCommand(), drainCommand(), tenantsCommand(), renderCommand())
	return root
}
