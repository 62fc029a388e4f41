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

// clusterFlags are the flags for the connection to a cluster.
type clusterFlags struct {
	kubeconfig, context, which string
	clock                      *hubClock
}

// add defines the flags. which names the cluster in help and errors.
func (f *clusterFlags) add(flags *pflag.FlagSet, which string) {
	f.which, f.clock = which, &hubClock{}
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of "+which+"; empty: the kubeconfig that kubectl uses")
	flags.StringVar(&f.context, "context", "", "context in the kubeconfig; empty: its current context")
}

// hubFlags are the flags for the connection to the management cluster.
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
	config.Wrap(f.clock.observe)
	scheme, err := inspect.Scheme()
	if err != nil {
		return nil, err
	}
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// readLimit is the time limit for all requests of a command.
const readLimit = 30 * time.Second

// withHub connects to the management cluster and calls do, with readLimit as the time limit.
func (f *hubFlags) withHub(ctx context.Context, do func(context.Context, client.Client) error) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	return do(ctx, c)
}

func (f *hubFlags) read(ctx context.Context) (h *inspect.Snapshot, err error) {
	err = f.withHub(ctx, func(ctx context.Context, c client.Client) (err error) {
		h, err = f.readWith(ctx, c)
		return err
	})
	return h, err
}

// readWith reads a snapshot with this client.
func (f *hubFlags) readWith(ctx context.Context, c client.Client) (*inspect.Snapshot, error) {
	h, err := inspect.Read(ctx, c, f.namespace)
	if err == nil {
		h.Now = f.clock.now()
	}
	return h, err
}

// warnOutdated warns that the output may be out of date. It does nothing if why is empty.
func warnOutdated(cmd *cobra.Command, why string) {
	if why != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", why)
	}
}

// printAs writes JSON or YAML.
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

// addOutput adds the flag --output.
func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "text, json or yaml")
}
