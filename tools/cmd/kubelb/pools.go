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
		Short: "Show AddressPools; with names, also the owner of each address",
		Long: `Show AddressPools: how many addresses are used and free, whether a LoadBalancer that names no pool gets them (unasked), which
tenants may use them, and which gateways announce them. A gateway that is not Ready has its state behind its name.

If you name AddressPools, the command also shows each address in use, and the LoadBalancers that have it.`,
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
