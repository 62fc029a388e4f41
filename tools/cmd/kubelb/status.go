package main

import (
	"io"

	"github.com/spf13/cobra"

	"kubelb.k8c.io/tools/inspect"
)

func statusCommand() *cobra.Command {
	var hub hubFlags
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show gateways, address pools, tenants and problems, on one page",
		Long: `Show the state of the management cluster on one page: its gateways, AddressPools and tenants, and all problems.

The exit status is 1 if a problem is an error, such as a LoadBalancer that is not served. Warnings do not count.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := hub.read(cmd.Context())
			if err != nil {
				return err
			}
			return printStatus(cmd.OutOrStdout(), output, h.Status())
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	return cmd
}

func printStatus(w io.Writer, format string, s inspect.Status) error {
	if format != "text" {
		if err := printAs(w, format, s); err != nil {
			return err
		}
	} else if err := s.Text(w); err != nil {
		return err
	}
	if s.Broken() {
		return errNotServed
	}
	return nil
}

func explainCommand() *cobra.Command {
	var hub hubFlags
	var output, tenant string
	cmd := &cobra.Command{
		Use:   "explain NAME",
		Short: "Show why a LoadBalancer is served, or why it is not",
		Long: `Check each step from a LoadBalancer's tenant to the announcement of its addresses: acceptance, nodes, addresses, dataplanes.
Show the first step that fails, and what to do.

NAME is the LoadBalancer's name on the management cluster, with or without its namespace, or NAMESPACE/NAME of the Service in
the tenant cluster. The exit status is 1 if the LoadBalancer is not served.`,
		Example: `  kubelb explain shop/web --tenant a
  kubelb explain f6c929f0-65ba-4ce5-beb3-2384125e165b`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := hub.read(cmd.Context())
			if err != nil {
				return err
			}
			lb, err := h.Find(args[0], tenant)
			if err != nil {
				return err
			}
			return printExplanation(cmd.OutOrStdout(), output, h.Explain(lb))
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	cmd.Flags().StringVar(&tenant, "tenant", "", "the tenant of the Service, if several tenants have a Service of that name")
	return cmd
}

func printExplanation(w io.Writer, format string, e inspect.Explanation) error {
	if format != "text" {
		if err := printAs(w, format, e); err != nil {
			return err
		}
	} else if err := e.Text(w); err != nil {
		return err
	}
	if !e.Served() {
		return errNotServed
	}
	return nil
}
