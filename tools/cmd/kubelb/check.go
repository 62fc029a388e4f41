package main

import (
	"github.com/spf13/cobra"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/tools/inspect"
)

func checkCommand() *cobra.Command {
	var hub hubFlags
	var output, tenant string
	cmd := &cobra.Command{
		Use:   "check [NAME]",
		Short: "Connect to LoadBalancers from this host, and show which of them answer",
		Long: `Connect from this host to each TCP port of one LoadBalancer, or of all, and show what happens. The command watches each
connection for four seconds, and closes it. It does not check UDP ports: what counts as an answer depends on the application.

This host needs the management cluster's API and a route to the addresses. A gateway's own host reaches no LoadBalancer.

A failure is expected if the Service has externalTrafficPolicy Local and no ready pod, or if its source ranges may exclude this host.
NAME is as in 'kubelb explain'. The exit status is 1 if a connection fails unexpectedly.`,
		Example: `  kubelb check
  kubelb check shop/web --tenant a`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := hub.read(cmd.Context())
			if err != nil {
				return err
			}
			lbs, err := toCheck(h, args, tenant)
			if err != nil {
				return err
			}
			checks := h.Check(cmd.Context(), lbs)
			if output != "text" {
				err = printAs(cmd.OutOrStdout(), output, checks)
			} else {
				err = inspect.WriteChecks(cmd.OutOrStdout(), checks)
			}
			if err == nil && inspect.Failing(checks) {
				return errNotServed
			}
			return err
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	cmd.Flags().StringVar(&tenant, "tenant", "", "the tenant of the Service. Without NAME: check all LoadBalancers of this tenant")
	return cmd
}

// toCheck returns the LoadBalancers to check: the named one, those of the tenant, or all.
func toCheck(h *inspect.Snapshot, args []string, tenant string) (lbs []*v1alpha1.LoadBalancer, err error) {
	if len(args) > 0 {
		lb, err := h.Find(args[0], tenant)
		return []*v1alpha1.LoadBalancer{lb}, err
	}
	for i := range h.LoadBalancers {
		if tenant == "" || h.LoadBalancers[i].Namespace == v1alpha1.TenantNamespacePrefix+tenant {
			lbs = append(lbs, &h.LoadBalancers[i])
		}
	}
	return lbs, nil
}
