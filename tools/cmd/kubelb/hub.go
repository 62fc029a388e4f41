package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/tools/inspect"
)

// clusterFlags say how a cluster is reached.
type clusterFlags struct {
	kubeconfig, context, which string
	clock                      *hubClock
}

// add defines the flags; which says what cluster it is.
func (f *clusterFlags) add(flags *pflag.FlagSet, which string) {
	f.which, f.clock = which, &hubClock{}
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of "+which+"; empty takes it from where kubectl does")
	flags.StringVar(&f.context, "context", "", "context in it; empty takes the current one")
}

// hubFlags say how the management cluster is reached.
type hubFlags struct {
	clusterFlags
	namespace string
}

func (f *hubFlags) add(flags *pflag.FlagSet) {
	f.clusterFlags.add(flags, "the management cluster")
	flags.StringVarP(&f.namespace, "namespace", "n", "kubelb", "namespace of the manager, where the gateways' Leases are")
}

// connect returns a client of the cluster.
func (f *clusterFlags) connect() (client.Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(f.which, "the "), err)
	}
	config.Wrap(f.clock.listen)
	scheme, err := inspect.Scheme()
	if err != nil {
		return nil, err
	}
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// readLimit bounds how long the management cluster is asked.
const readLimit = 30 * time.Second

// ask has something done with the management cluster within that time.
func (f *hubFlags) ask(ctx context.Context, do func(context.Context, client.Client) error) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	return do(ctx, c)
}

func (f *hubFlags) read(ctx context.Context) (h *inspect.Hub, err error) {
	err = f.ask(ctx, func(ctx context.Context, c client.Client) (err error) {
		h, err = f.readBy(ctx, c)
		return err
	})
	return h, err
}

// readBy reads everything by a client of this cluster.
func (f *hubFlags) readBy(ctx context.Context, c client.Client) (*inspect.Hub, error) {
	h, err := inspect.Read(ctx, c, f.namespace)
	if err == nil {
		h.Now = f.clock.now()
	}
	return h, err
}

// warnOutdated says beside a table why it is of before.
func warnOutdated(cmd *cobra.Command, why string) {
	if why != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", why)
	}
}

// printAs writes what is not text.
func printAs(w io.Writer, format string, what any) error {
	text, err := yaml.Marshal(what)
	switch format {
	case "json":
		text, err = json.MarshalIndent(what, "", "  ")
		text = append(text, '\n')
	case "yaml":
	default:
		return fmt.Errorf("--output=%s: use text, json or yaml", format)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// addOutput adds the flag for that.
func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "text, json or yaml")
}
