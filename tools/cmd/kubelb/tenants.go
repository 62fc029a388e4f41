package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/tools/inspect"
)

func tenantsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tenants", Short: "List and create tenants, and print, rotate and revoke their credentials"}
	cmd.AddCommand(tenantsListCommand(), tenantsCreateCommand(), tenantsKubeconfigCommand(), tenantsRotateCommand(), tenantsRevokeCommand())
	return cmd
}

// tenantCommand returns a command whose argument is the name of a tenant.
func tenantCommand(use, short, long, example string, run func(context.Context, client.Client, string, *cobra.Command) error) *cobra.Command {
	hub := &hubFlags{}
	cmd := &cobra.Command{Use: use + " NAME", Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return hub.withHub(cmd.Context(), func(ctx context.Context, c client.Client) error { return run(ctx, c, args[0], cmd) })
		}}
	hub.add(cmd.Flags())
	return cmd
}

func tenantsListCommand() *cobra.Command {
	var hub hubFlags
	var output string
	cmd := &cobra.Command{Use: "list", Short: "Show tenants, their use and their limits", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list v1alpha1.TenantList
			var elected *coordinationv1.Lease
			err := hub.withHub(cmd.Context(), func(ctx context.Context, c client.Client) (err error) {
				elected, err = inspect.ReadElected(ctx, c, hub.namespace)
				return errors.Join(err, c.List(ctx, &list))
			})
			if err != nil {
				return err
			}
			warnOutdated(cmd, inspect.Outdated(elected, hub.clock.now()))
			if output != "text" {
				return printAs(cmd.OutOrStdout(), output, list.Items)
			}
			return printTenants(cmd.OutOrStdout(), list.Items)
		}}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	return cmd
}

func printTenants(out io.Writer, tenants []v1alpha1.Tenant) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TENANT\tSTATE\tLOADBALANCERS\tADDRESSES\tPORTS\tENDPOINTS\tCONNECTIONS\tNEW/S\tBACKEND-CIDRS")
	for _, t := range tenants {
		used := v1alpha1.TenantUse{}
		if t.Status.Used != nil {
			used = *t.Status.Used
		}
		limits := t.Spec.Limits
		fmt.Fprintln(w, strings.Join([]string{t.Name, inspect.TenantState(&t), usage(used.LoadBalancers, limits.LoadBalancers), usage(used.Addresses, limits.Addresses), usage(used.Ports, convert.PortLimit(&t)),
			highestUsage(used.EndpointsPerLoadBalancer, limits.EndpointsPerLoadBalancer), highestUsage(used.ConnectionsPerPort, limits.ConnectionsPerPort),
			highestUsage(used.NewConnectionsPerSecondPerPort, limits.NewConnectionsPerSecondPerPort), strings.Join(t.Spec.BackendCIDRs, ",")}, "\t"))
	}
	return w.Flush()
}

func usage(used int32, limit *int32) string {
	if limit == nil {
		return fmt.Sprint(used)
	}
	return fmt.Sprintf("%d of %d", used, *limit)
}

// highestUsage is for limits of each LoadBalancer or port. The use is known only if there is a limit.
func highestUsage(used, limit *int32) string {
	switch {
	case limit == nil:
		return "-"
	case used == nil:
		return fmt.Sprintf("? of %d", *limit)
	}
	return usage(*used, limit)
}

func tenantsCreateCommand() *cobra.Command {
	var networks []string
	var network string
	var limits []limitFlag
	cmd := tenantCommand("create", "Create a tenant, and print the kubeconfig for its CCM",
		"Create a tenant, wait for its credentials, and print the kubeconfig for its CCM.",
		"  kubelb tenants create a --backend-cidrs=198.51.100.0/24 --max-addresses=10 > kubelb",
		func(ctx context.Context, c client.Client, name string, cmd *cobra.Command) error {
			tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.TenantSpec{BackendCIDRs: networks, BackendNetwork: network}}
			for i := range limits {
				if l := &limits[i]; cmd.Flags().Changed(l.name) {
					*l.of(&tenant.Spec.Limits) = &l.value
				}
			}
			err := c.Create(ctx, tenant)
			if apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("tenant %q exists already: 'kubelb tenants kubeconfig %s' prints its kubeconfig", name, name)
			}
			if err != nil {
				return err
			}
			kubeconfig, err := awaitKubeconfig(ctx, c, name, nil)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(kubeconfig)
			return err
		})
	cmd.Flags().StringSliceVar(&networks, "backend-cidrs", nil, "the networks of the tenant's nodes, separated by commas; addresses outside them are never targets")
	cmd.Flags().StringVar(&network, "backend-network", "", "name of the network of --backend-cidrs; needed if nodes of tenants at several sites have the same addresses")
	limits = limitFlags()
	for i := range limits {
		cmd.Flags().Int32Var(&limits[i].value, limits[i].name, 0, limits[i].bounds+"; default: "+cmp.Or(limits[i].unset, "any number"))
	}
	return cmd
}

// limitFlag is a flag for one of a tenant's limits.
type limitFlag struct {
	name, bounds string
	// unset is the limit without the flag. It is empty if there is none.
	unset string
	of    func(*v1alpha1.TenantLimits) **int32
	value int32
}

func limitFlags() []limitFlag {
	return []limitFlag{
		{name: "max-loadbalancers", bounds: "how many LoadBalancers may have addresses", unset: "500, the highest number", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.LoadBalancers }},
		{name: "max-addresses", bounds: "how many addresses all LoadBalancers may have", unset: "two for each LoadBalancer", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.Addresses }},
		{name: "max-ports", bounds: "how many ports all LoadBalancers may have", unset: "ten for each LoadBalancer of --max-loadbalancers, 5000", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.Ports }},
		{name: "max-endpoints", bounds: "how many endpoints of each family a LoadBalancer may have", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.EndpointsPerLoadBalancer }},
		{name: "max-connections", bounds: "how many connections each port may have at each gateway", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.ConnectionsPerPort }},
		{name: "max-new-connections", bounds: "how many connections may begin in a second at each port at each gateway", of: func(l *v1alpha1.TenantLimits) **int32 { return &l.NewConnectionsPerSecondPerPort }},
	}
}

func tenantsKubeconfigCommand() *cobra.Command {
	cmd := tenantCommand("kubeconfig", "Print the kubeconfig for a tenant's CCM",
		`Print the kubeconfig for a tenant's CCM. Its token is valid for an hour at most, or for the manager's --tenant-token-lifetime. A CCM with
the kubeconfig renews the token itself. If the token has expired before the CCM has it, print the kubeconfig again.`, "  kubelb tenants kubeconfig a > kubelb",
		func(ctx context.Context, c client.Client, name string, cmd *cobra.Command) error {
			secret, err := kubeconfigSecret(ctx, c, name)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(secret.Data[v1alpha1.CCMKubeconfigKey])
			return err
		})
	return cmd
}

func tenantsRotateCommand() *cobra.Command {
	cmd := tenantCommand("rotate", "Give a tenant new credentials, and print the new kubeconfig",
		`Give a tenant new credentials, and print the new kubeconfig. The old credentials become invalid within seconds. Until the new
kubeconfig is in the tenant's cluster, its CCM changes nothing, and traffic continues unchanged. The CCM takes the new kubeconfig within
two minutes, without a restart. (KubeLB's own CCM needs a restart.) You need not rotate regularly: a CCM renews its token itself.`,
		`  kubelb tenants rotate a > kubelb
  kubectl --context=a -n kubelb create secret generic kubelb-cluster --from-file=kubelb --dry-run=client -o yaml | kubectl --context=a apply -f -`,
		func(ctx context.Context, c client.Client, name string, cmd *cobra.Command) error {
			old, err := kubeconfigSecret(ctx, c, name)
			if err != nil {
				return err
			}
			// All tokens of the ServiceAccount become invalid when it is deleted.
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: old.Namespace, Name: v1alpha1.CCMName}}
			if err := c.Delete(ctx, account); client.IgnoreNotFound(err) != nil {
				return err
			}
			tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}}
			now := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationRotated, time.Now().UTC().Format(time.RFC3339Nano))
			if err := c.Patch(ctx, tenant, client.RawPatch(types.MergePatchType, now)); err != nil {
				return err
			}
			kubeconfig, err := awaitKubeconfig(ctx, c, name, old.Data[v1alpha1.CCMKubeconfigKey])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(kubeconfig)
			return err
		})
	return cmd
}

func tenantsRevokeCommand() *cobra.Command {
	var undo bool
	cmd := tenantCommand("revoke", "Revoke a tenant's credentials, and stop serving its LoadBalancers",
		`Revoke a tenant's credentials, and stop serving its LoadBalancers. They keep their addresses. --undo serves them again, with new
credentials, which 'kubelb tenants kubeconfig' prints.`, "  kubelb tenants revoke a\n  kubelb tenants revoke a --undo",
		func(ctx context.Context, c client.Client, name string, cmd *cobra.Command) error {
			tenant := &v1alpha1.Tenant{ObjectMeta: metav1.ObjectMeta{Name: name}}
			err := c.Patch(ctx, tenant, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"revoked":%t}}`, !undo)))
			if apierrors.IsNotFound(err) {
				return errNoTenant(ctx, c, name)
			}
			if err != nil {
				return err
			}
			return awaitPhase(ctx, c, name, map[bool]string{false: v1alpha1.TenantRevoked, true: v1alpha1.TenantReady}[undo], cmd.OutOrStdout())
		})
	cmd.Flags().BoolVar(&undo, "undo", false, "serve the tenant again, with new credentials")
	return cmd
}

func kubeconfigSecret(ctx context.Context, c client.Client, tenant string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	err := c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.TenantNamespacePrefix + tenant, Name: v1alpha1.CCMKubeconfigSecret}, secret)
	if !apierrors.IsNotFound(err) {
		return secret, err
	}
	var t v1alpha1.Tenant
	if err := c.Get(ctx, client.ObjectKey{Name: tenant}, &t); apierrors.IsNotFound(err) {
		return nil, errNoTenant(ctx, c, tenant)
	} else if err != nil {
		return nil, err
	}
	if t.Spec.Revoked {
		return nil, fmt.Errorf("tenant %s is revoked: 'kubelb tenants revoke %s --undo' gives it new credentials", tenant, tenant)
	}
	return nil, fmt.Errorf("tenant %s has no credentials yet: is a kubelb-manager with the controller role running? See 'kubectl describe tenant %s'", tenant, tenant)
}

func errNoTenant(ctx context.Context, c client.Client, name string) error {
	var list v1alpha1.TenantList
	var names []string
	if err := c.List(ctx, &list); err != nil {
		return errors.Join(fmt.Errorf("there is no tenant %q", name), err)
	}
	for _, t := range list.Items {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return fmt.Errorf("there is no tenant %q; the tenants are %s", name, strings.Join(names, ", "))
}

// awaitKubeconfig waits for a kubeconfig that differs from old.
func awaitKubeconfig(ctx context.Context, c client.Client, tenant string, old []byte) (content []byte, err error) {
	err = await(ctx, fmt.Sprintf("tenant %s did not get credentials within %s", tenant, readLimit), func() (bool, error) {
		secret, err := kubeconfigSecret(ctx, c, tenant)
		if err != nil {
			return false, err
		}
		content = secret.Data[v1alpha1.CCMKubeconfigKey]
		return len(content) > 0 && !bytes.Equal(content, old), nil
	})
	return content, err
}

func awaitPhase(ctx context.Context, c client.Client, tenant, phase string, out io.Writer) error {
	word := strings.ToLower(phase)
	message := fmt.Sprintf("tenant %s did not become %s within %s: is a kubelb-manager with the controller role running?", tenant, word, readLimit)
	err := await(ctx, message, func() (bool, error) {
		var t v1alpha1.Tenant
		err := c.Get(ctx, client.ObjectKey{Name: tenant}, &t)
		return err == nil && t.Status.Phase == phase && t.Status.ObservedGeneration == t.Generation, err
	})
	if err == nil {
		fmt.Fprintf(out, "tenant %s is %s\n", tenant, word)
	}
	return err
}

// await calls done until it returns true. If ctx ends before that, it returns an error with the message and the last error.
func await(ctx context.Context, message string, done func() (bool, error)) error {
	for {
		isDone, err := done()
		if isDone {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New(message), err)
		case <-time.After(pollEvery):
		}
	}
}
