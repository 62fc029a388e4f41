package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kubelb.k8c.io/tools/manifest"
	"kubelb.k8c.io/tools/render"
)

// errNotServed makes the exit status 1 without another message, because the problems are printed already.
var errNotServed = errors.New("not everything is served")

// modelOnly is the value of --backend without a dataplane.
const modelOnly = "model"

type renderFlags struct {
	files   []string
	backend string
	output  string
	options render.Options
}

func renderCommand() *cobra.Command {
	var flags renderFlags
	cmd := &cobra.Command{
		Use:   "render -f FILE[,FILE...]",
		Short: "Show what KubeLB makes of Services: LoadBalancer, model and dataplane",
		Long: `Show what KubeLB makes of Kubernetes objects: the LoadBalancer that the CCM writes, the external address that the
controllers allocate, the model that every gateway makes of it, and exactly what a dataplane would hold.

The command needs no cluster and no root, and changes nothing. Give it Services with their Nodes and EndpointSlices, or
LoadBalancers with their Addresses, or both. Add Tenants and AddressPools where they matter. The command skips other kinds.
It fills in missing fields as an API server or an operator would, and prints them as assumed.

An object that an API server would refuse is not served. The API server's message says why. Kinds of kubelb.k8c.io are
checked with the definitions of this program's version. The command does not check admission policies, conditions of the
cluster (NodePorts that are taken, address families that it lacks), and fields that do not matter for load balancing.

The command prints problems with the line that they come from. The exit status is 1 if an object is not served, or if an
input cannot be read.`,
		Example: `  kubelb render -f service.yaml,nodes.yaml
  kubelb render -f service.yaml --backend nftables
  kubectl get services,nodes,endpointslices -A -o yaml | kubelb render -f - -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&flags.files, "filename", "f", nil, "files with YAML or JSON, with one or several documents each; - is standard input")
	f.StringVar(&flags.backend, "backend", modelOnly, "model, the name of a backend (nftables, envoy, ebpf), or the path of a plugin")
	f.StringVarP(&flags.output, "output", "o", "text", "text, json or yaml")
	flags.options.AddFlags(f)
	if err := cmd.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (f *renderFlags) run(ctx context.Context, in io.Reader, out, diagnostics io.Writer) error {
	if err := f.check(); err != nil {
		return err
	}
	objects, err := f.read(in, diagnostics)
	if err != nil {
		return err
	}
	result, err := render.Render(ctx, objects, f.options)
	if err != nil {
		return err
	}
	backend, dataplane := "", ""
	if f.backend != modelOnly {
		backend = f.backend
		if dataplane, err = result.Dataplane(ctx, f.backend); err != nil {
			return err
		}
	}
	if err := result.Print(out, f.output, backend, dataplane); err != nil {
		return err
	}
	for _, p := range result.Problems {
		fmt.Fprintln(diagnostics, p)
	}
	if result.Refused() {
		return errNotServed
	}
	return nil
}

func (f *renderFlags) check() error {
	if !slices.Contains([]string{"text", "json", "yaml"}, f.output) {
		return fmt.Errorf("--output is %q: use text, json or yaml", f.output)
	}
	return f.options.Check()
}

// read reads all files. It writes a note for each object that it skips because of its kind.
func (f *renderFlags) read(in io.Reader, diagnostics io.Writer) ([]manifest.Object, error) {
	var objects []manifest.Object
	var errs []error
	for _, name := range f.files {
		found, err := readFile(name, in)
		objects, errs = append(objects, found...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	usable := 0
	for _, o := range objects {
		if o.Typed == nil {
			fmt.Fprintf(diagnostics, "%s:%d: note: skipped: a %s does not matter for load balancing\n", o.File, o.Line("kind"), o.Kind)
			continue
		}
		usable++
	}
	if usable == 0 {
		return nil, fmt.Errorf("%s: there is no Service and no LoadBalancer: give at least one", strings.Join(f.files, ", "))
	}
	return objects, nil
}

func readFile(name string, in io.Reader) ([]manifest.Object, error) {
	if name == "-" {
		return manifest.Read("stdin", in)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return manifest.Read(name, file)
}
