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

// errRefused makes the exit status 1 without another message: the problems are printed already.
var errRefused = errors.New("not everything is served")

// modelOnly is the value of --backend that renders no dataplane.
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
		Short: "Show what Services become: LoadBalancer, model and dataplane",
		Long: `Show what plain Kubernetes objects become: the LoadBalancer that the CCM writes, the external address that the
manager gives, the model that every gateway makes of it, and exactly what a dataplane would hold.

It needs no cluster and no root and changes nothing. Give it Services with their Nodes and EndpointSlices, or
LoadBalancers with their Addresses, or both, and, where they matter, Tenants and AddressPools; other kinds are passed
over. What an API server or an operator would have filled in is assumed, and said.

An object that an API server would refuse is not served, and the API server's message says why. For the kinds of
kubelb.k8c.io the definitions that this program was built with decide. Not judged: admission policies, what depends on
the cluster (NodePorts that are taken, families that it lacks), and fields that do not matter for load balancing.

Problems are printed with the line that they come from. The exit status is 1 when an object is not served, or when an
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
	f.StringSliceVarP(&flags.files, "filename", "f", nil, "files with YAML or JSON, of one or several documents; - is standard input")
	f.StringVar(&flags.backend, "backend", modelOnly, "model, the name of a backend (nftables, envoy, ebpf), or the path of a backend's binary")
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
		return errRefused
	}
	return nil
}

func (f *renderFlags) check() error {
	if !slices.Contains([]string{"text", "json", "yaml"}, f.output) {
		return fmt.Errorf("--output is %q: use text, json or yaml", f.output)
	}
	return f.options.Check()
}

// read reads all files. It writes a note for each object of a kind that it skips.
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
			fmt.Fprintf(diagnostics, "%s:%d: note: a %s does not matter for load balancing and is passed over\n", o.File, o.Line("kind"), o.Kind)
			continue
		}
		usable++
	}
	if usable == 0 {
		return nil, fmt.Errorf("%s: no Service and no LoadBalancer there; give one", strings.Join(f.files, ", "))
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
