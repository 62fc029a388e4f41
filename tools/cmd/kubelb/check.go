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
		Short: "Connect to LoadBalancers from this host, and show which answer",
		Long: `Connect from this host to each TCP port of a LoadBalancer, or of all that there are, and say what happens. Each connection is watched
for four seconds, and ended. UDP is not tried: only the Service knows what is an answer.

A failure is expected where connections are refused on purpose, as without any ready pod, or where source ranges may keep this host out.
NAME is as for explain. The exit status is 1 when a connection fails that should not.`,
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
				return errRefused
			}
			return err
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	cmd.Flags().StringVar(&tenant, "tenant", "", "the tenant whose Service it is, or whose LoadBalancers are all checked")
	return cmd
}

// toCheck are the LoadBalancers that are meant: the named one, or all of the tenant, or all.
func toCheck(h *inspect.Hub, args []string, tenant string) (lbs []*v1alpha1.LoadBalancer, err error) {
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
