package main

import (
	"github.com/spf13/cobra"

	"kubelb.k8c.io/tools/inspect"
)

func poolsCommand() *cobra.Command {
	var hub hubFlags
	var output string
	cmd := &cobra.Command{
		Use:   "pools [NAME...]",
		Short: "Show address pools, and who has the addresses of those that are named",
		Long: `Show address pools: how many addresses are used and free, whether a LoadBalancer that names no pool is given them (unasked), which
tenants may use them, and which gateways are to announce them: those that are there, with their states unless they are Ready. Of pools that are named it shows each address that somebody has, and who.`,
		Example: `  kubelb pools
  kubelb pools public`,
		RunE: func(cmd *cobra.Command, names []string) error {
			h, err := hub.read(cmd.Context())
			if err != nil {
				return err
			}
			pools, err := h.PoolsNamed(names...)
			if err != nil {
				return err
			}
			if output != "text" {
				return printAs(cmd.OutOrStdout(), output, pools)
			}
			warnOutdated(cmd, inspect.Outdated(h.Elected, h.Now))
			return inspect.PoolsText(cmd.OutOrStdout(), pools, len(names) > 0)
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	return cmd
}
