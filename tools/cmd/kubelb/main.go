// Command kubelb is the command line for operators of a management cluster.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"kubelb.k8c.io/api/plain"
)

func main() {
	if err := rootCommand().Execute(); err != nil {
		if !errors.Is(err, errNotServed) {
			fmt.Fprintln(plain.Writer(os.Stderr), "kubelb:", err)
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
	// The output contains texts of tenants. The writer escapes control characters.
	root.SetOut(plain.Writer(os.Stdout))
	root.SetErr(plain.Writer(os.Stderr))
	root.AddCommand(statusCommand(), explainCommand(), checkCommand(), traceCommand(), poolsCommand(), bundleCommand(), drainCommand(), tenantsCommand(), migrateCommand(), renderCommand())
	return root
}
