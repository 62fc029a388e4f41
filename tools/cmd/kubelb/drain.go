package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/tools/inspect"
)

type drainFlags struct {
	hub         hubFlags
	undo, force bool
	timeout     time.Duration
}

func drainCommand() *cobra.Command {
	var flags drainFlags
	cmd := &cobra.Command{
		Use:   "drain GATEWAY",
		Short: "Move a gateway's addresses to other gateways, before you work on its host",
		Long: `Move a gateway's addresses to other gateways, which get all new connections. Existing connections continue while the gateway
runs: other gateways redirect their packets to it, or serve them themselves if packets reach the nodes unchanged. After
that you can stop the gateway's manager, and restart its host.

The command refuses if no other working gateway announces an address in use, for example if an AddressPool chooses only this
gateway. It waits until the gateway answers for no address. --undo reverts the drain.`,
		Example: `  kubelb drain gateway-1
  kubelb drain gateway-1 --undo`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			hub, err := flags.hub.connect()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), flags.timeout)
			defer cancel()
			return flags.drain(ctx, hub, args[0], cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	flags.hub.add(f)
	f.BoolVar(&flags.undo, "undo", false, "revert the drain: the gateway gets addresses again")
	f.BoolVar(&flags.force, "force", false, "drain the gateway even if no other gateway announces its addresses")
	f.DurationVar(&flags.timeout, "timeout", time.Minute, "how long to wait")
	return cmd
}

// pollEvery is the interval at which a command that waits reads a status.
const pollEvery = 200 * time.Millisecond

func (f *drainFlags) drain(ctx context.Context, hub client.Client, name string, out io.Writer) error {
	if !f.undo && !f.force {
		if err := f.requireOthers(ctx, hub, name); err != nil {
			return err
		}
	}
	gateway := &v1alpha1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: name}}
	err := hub.Patch(ctx, gateway, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"draining":%t}}`, !f.undo)))
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no gateway %q: see 'kubectl get gateways.kubelb.k8c.io'", name)
	}
	if err != nil {
		return err
	}
	if f.undo {
		fmt.Fprintf(out, "gateway %s takes addresses again\n", name)
		return nil
	}
	last := int32(-1)
	for {
		if err := hub.Get(ctx, client.ObjectKey{Name: name}, gateway); err != nil {
			return fmt.Errorf("gateway %s drains, but it is unknown whether it still answers for addresses: %w", name, err)
		}
		drained := meta.FindStatusCondition(gateway.Status.Conditions, v1alpha1.ConditionDrained)
		if drained != nil && drained.Status == metav1.ConditionTrue {
			fmt.Fprintf(out, "gateway %s answers for no address any more; its connections continue while it runs\n", name)
			return nil
		}
		if n := gateway.Status.AnnouncedAddresses; n != last {
			last = n
			fmt.Fprintf(out, "gateway %s still answers for %d addresses\n", name, n)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gateway %s still answers for %d addresses after %s: is its manager running? The gateway continues to drain; 'kubelb drain %s --undo' reverts that", name, last, f.timeout, name)
		case <-time.After(pollEvery):
		}
	}
}

// requireOthers returns an error if no other gateway works, or if no other gateway announces an AddressPool with addresses in use.
func (f *drainFlags) requireOthers(ctx context.Context, hub client.Client, name string) error {
	h, err := f.hub.readWith(ctx, hub)
	if err != nil {
		return err
	}
	var others []string
	working := false
	for i := range h.Gateways {
		switch g := &h.Gateways[i]; {
		case g.Name == name:
		case h.Works(g):
			working = true
		default:
			others = append(others, g.Name)
		}
	}
	slices.Sort(others)
	switch {
	case working:
		return refuseUnserved(h, name)
	case len(others) == 0:
		return errors.New("there is no other gateway: no gateway would answer for any address. Start another gateway first, or use --force")
	}
	return fmt.Errorf("no other gateway is ready (%s): no gateway would answer for any address. Repair a gateway first, or use --force", strings.Join(others, ", "))
}

// refuseUnserved returns an error that names the AddressPools whose addresses no other gateway announces.
func refuseUnserved(h *inspect.Snapshot, name string) error {
	unserved := h.UnservedWithout(name)
	if len(unserved) == 0 {
		return nil
	}
	var pools, names []string
	for _, b := range unserved {
		pools, names = append(pools, b.String()), append(names, b.Pool)
	}
	return fmt.Errorf("no other working gateway answers for these addresses, which are in use: %s. 'kubelb pools %s' shows which gateways the pools choose. "+
		"Label another gateway first, so that they choose it ('kubectl label gateways.kubelb.k8c.io GATEWAY KEY=VALUE'), or use --force", phrase.Few(pools, "; "), strings.Join(names, " "))
}
