package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/ccm/foreign"
	"kubelb.k8c.io/tools/migrate"
)

// migrateLimit is the time limit of a migration. It is enough for large clusters.
const migrateLimit = 10 * time.Minute

type migrateFlags struct {
	cluster        clusterFlags
	dryRun, force  bool
	secrets, onHub bool
}

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Move a tenant cluster from KubeLB's own CCM to this project's, or back"}
	cmd.AddCommand(fromKubeLBCommand(), toKubeLBCommand())
	return cmd
}

func (f *migrateFlags) add(cmd *cobra.Command, former string) {
	f.cluster.add(cmd.Flags(), "the tenant cluster")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and change nothing")
	cmd.Flags().BoolVar(&f.force, "force", false, "do not check whether "+former+" still runs")
}

func fromKubeLBCommand() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use:   "from-kubelb",
		Short: "Remove the finalizer of KubeLB's own CCM from objects that this project's CCM does not serve",
		Long: `Remove the finalizer kubelb.k8c.io/cleanup of KubeLB's own CCM from Ingresses, Gateways, their routes and SyncSecrets. If it stays,
the deletion of these objects, and of their namespaces, hangs. The command changes nothing else, and prints a line for each object.
Services need no migration: this project's CCM adopts them.

The command refuses while a CCM of KubeLB holds its Lease. It cannot see a CCM without leader election. You can run it again.

Rights in the tenant cluster: get, list and patch of ingresses (networking.k8s.io), gateways and the routes (gateway.networking.k8s.io)
and syncsecrets (kubelb.k8c.io); of secrets with --secrets; list of leases (coordination.k8s.io). Kinds that the cluster does not have
need no rights. docs/migrate.md has the ClusterRole.`,
		Example: "  kubelb migrate from-kubelb --context=tenant-a --dry-run\n  kubelb migrate from-kubelb --context=tenant-a",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, "KubeLB's CCM", f.fromLease, f.fromKubeLB)
		},
	}
	f.add(cmd, "KubeLB's CCM")
	cmd.Flags().BoolVar(&f.secrets, "secrets", false, "also Secrets with the label kubelb.k8c.io/managed-by=kubelb, which have the finalizer if KubeLB's CCM ran with --enable-secret-synchronizer; needs the right to read Secrets")
	cmd.Flags().BoolVar(&f.onHub, "hub", false, "work on the management cluster instead: remove the finalizer of KubeLB's manager from Routes and SyncSecrets, after this project's manager has replaced it (rights: get, list and patch of routes and syncsecrets of kubelb.k8c.io)")
	return cmd
}

func toKubeLBCommand() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use:   "to-kubelb",
		Short: "Hand the Services of this project's CCM over to KubeLB's own",
		Long: `Hand the Services of this project's CCM over to KubeLB's own CCM. The command replaces the finalizer service.kubernetes.io/load-balancer-cleanup
by KubeLB's kubelb.k8c.io/cleanup, and removes the condition kubelb.k8c.io/Ready. KubeLB's CCM knows neither of the two: deleted
Services would hang, and the condition would never change. Addresses stay. The command prints a line for each Service. A Service that is
being deleted is gone after that. If its LoadBalancer may be left on the management cluster, the line says so.

The command changes only Services that have the condition, or the class kubelb. It refuses while this project's CCM holds its Lease: stop
the CCM first. It cannot see a CCM without leader election. You can run it again.

Rights in the tenant cluster: get, list and patch of services; patch of services/status; list of leases (coordination.k8s.io).
docs/migrate.md has the ClusterRole.`,
		Example: "  helm uninstall kubelb-ccm -n kubelb\n  kubelb migrate to-kubelb --context=tenant-a --dry-run\n  kubelb migrate to-kubelb --context=tenant-a",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, "this project's CCM", func() (string, func(string) bool) { return v1alpha1.CCMLease, migrate.IsOwnCCM }, f.toKubeLB)
		},
	}
	f.add(cmd, "this project's CCM")
	return cmd
}

// fromLease returns the name of the former program's Lease, and a function that reports whether a holder is the former program.
func (f *migrateFlags) fromLease() (string, func(string) bool) {
	if f.onHub {
		return migrate.HubLease, func(string) bool { return true }
	}
	return v1alpha1.CCMLease, migrate.IsKubeLBCCM
}

// run calls work, unless the former program still runs.
func (f *migrateFlags) run(cmd *cobra.Command, former string, lease func() (string, func(string) bool), work func(context.Context, *migrate.Migration, io.Writer) error) error {
	c, err := f.cluster.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), migrateLimit)
	defer cancel()
	if !f.force {
		name, isFormer := lease()
		holder, err := migrate.Running(ctx, c, name, isFormer)
		if err != nil {
			return fmt.Errorf("cannot check whether %s still runs; if it does not, use --force: %w", former, err)
		}
		if holder != "" {
			return fmt.Errorf("%s still runs: %s. Stop it first: it would mark objects again", former, holder)
		}
	}
	m := &migrate.Migration{Client: c, DryRun: f.dryRun, Out: cmd.OutOrStdout()}
	err = work(ctx, m, cmd.ErrOrStderr())
	fmt.Fprintf(cmd.OutOrStdout(), "%d objects %s\n", m.Released(), map[bool]string{true: "would be released", false: "released"}[f.dryRun])
	return err
}

func (f *migrateFlags) fromKubeLB(ctx context.Context, m *migrate.Migration, diagnostics io.Writer) error {
	if f.onHub {
		return m.FromKubeLB(ctx, []schema.GroupKind{{Group: v1alpha1.GroupVersion.Group, Kind: "Route"}, foreign.SyncSecret})
	}
	if err := m.FromKubeLB(ctx, append(foreign.Kinds(), foreign.SyncSecret)); err != nil {
		return err
	}
	if !f.secrets {
		fmt.Fprintln(diagnostics, "Secrets were skipped: use --secrets if KubeLB's CCM ran with --enable-secret-synchronizer")
		return nil
	}
	return m.FromKubeLB(ctx, []schema.GroupKind{foreign.Secret}, client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedByKubeLB})
}

func (f *migrateFlags) toKubeLB(ctx context.Context, m *migrate.Migration, diagnostics io.Writer) error {
	notes, err := m.ToKubeLB(ctx)
	if len(notes) > 0 {
		fmt.Fprintln(diagnostics, strings.Join(notes, "\n"))
	}
	return err
}
