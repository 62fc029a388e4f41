package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"kubelb.k8c.io/tools/inspect"
)

func bundleCommand() *cobra.Command {
	var hub hubFlags
	var file string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write the state of the management cluster into an archive, for support",
		Long: `Write the status page, an explanation of each LoadBalancer that is not served, and all objects of KubeLB with their events into
a tar.gz archive.

The archive contains no Secret, no managed fields and no annotations of kubectl apply. It contains names and addresses.`,
		Example: "  kubelb bundle --file=kubelb.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var h *inspect.Snapshot
			var objects map[string][]byte
			err := hub.withHub(cmd.Context(), func(ctx context.Context, c client.Client) (err error) {
				if h, err = hub.readWith(ctx, c); err == nil {
					objects, err = readObjects(ctx, c, hub.namespace)
				}
				return err
			})
			if err != nil {
				return err
			}
			if err := writeBundle(file, h, objects); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d kinds of objects\n", file, len(objects))
			return err
		},
	}
	hub.add(cmd.Flags())
	cmd.Flags().StringVarP(&file, "file", "f", "kubelb-bundle.tar.gz", "path of the archive; the file must not exist yet")
	return cmd
}

// bundleKinds are the kinds in a bundle. It has only those Events and Leases that are in the namespaces of the manager and of tenants.
var bundleKinds = []schema.GroupVersionKind{
	{Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "Gateway"}, {Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "AddressPool"},
	{Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "BGPPeer"}, {Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "Tenant"},
	{Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "LoadBalancer"}, {Group: "kubelb.k8c.io", Version: "v1alpha1", Kind: "Addresses"},
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}, {Group: "", Version: "v1", Kind: "Event"},
}

// readObjects returns the objects as YAML, by the names of their files in the archive.
func readObjects(ctx context.Context, c client.Client, namespace string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, kind := range bundleKinds {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err := c.List(ctx, list); err != nil {
			return nil, fmt.Errorf("read objects of kind %s: %w", kind.Kind, err)
		}
		var kept []map[string]any
		for _, o := range list.Items {
			own := kind.Group == "kubelb.k8c.io" || o.GetNamespace() == namespace || strings.HasPrefix(o.GetNamespace(), "tenant-")
			if own {
				kept = append(kept, redacted(o).Object)
			}
		}
		text, err := yaml.Marshal(kept)
		if err != nil {
			return nil, err
		}
		out["objects/"+strings.ToLower(kind.Kind)+".yaml"] = text
	}
	return out, nil
}

// redacted removes managed fields and the annotation of kubectl apply. Nobody needs them, and the annotation may contain private data.
func redacted(o unstructured.Unstructured) unstructured.Unstructured {
	o.SetManagedFields(nil)
	annotations := o.GetAnnotations()
	delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
	o.SetAnnotations(annotations)
	return o
}

func writeBundle(file string, h *inspect.Snapshot, objects map[string][]byte) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create the archive: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	var status, explained strings.Builder
	if err := h.Status().Text(&status); err != nil {
		return err
	}
	for i := range h.LoadBalancers {
		if e := h.Explain(&h.LoadBalancers[i]); !e.Served() {
			if err := e.Text(&explained); err != nil {
				return err
			}
		}
	}
	objects["status.txt"], objects["explained.txt"] = []byte(status.String()), []byte(explained.String())
	if err := writeTar(w, objects, h.Now); err != nil {
		return err
	}
	return errors.Join(w.Close(), z.Close())
}

func writeTar(w *tar.Writer, files map[string][]byte, at time.Time) error {
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: "kubelb/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: at}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	return nil
}
