// Command pack-images makes the container images of KubeLB, as archives for 'ctr images import', 'docker load' and 'crane push'.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"kubelb.k8c.io/tools/image"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "pack-images:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("pack-images", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() {
		fmt.Fprint(stdout, "pack-images makes the container images of KubeLB as archives, each with a list of its contents. The same binaries give the same archives.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	var o image.Options
	out := flags.String("out", "bin/images", "directory for the archives")
	flags.StringVar(&o.Programs, "bin", "bin", "directory with the programs and Envoy")
	flags.StringVar(&o.Libraries, "libc", "", "directory with the files of Debian's package libc6, for Envoy (required)")
	flags.StringVar(&o.Registry, "registry", "localhost/kubelb", "prefix of the images' names")
	flags.StringVar(&o.Tag, "tag", "0.1.0", "tag of the images")
	flags.StringVar(&o.Licences, "licences", "", "file with the texts of the licences of the programs and their dependencies (required)")
	flags.StringVar(&o.EnvoyVersion, "envoy-version", "", "version of Envoy, for the list of contents (required)")
	flags.StringVar(&o.LibrariesVersion, "libc-version", "", "version of libc6, for the list of contents (required)")
	flags.Func("dataplane", "path of your own plugin, a static Go program: also makes the image kubelb-gateway-with-NAME, which has the plugin at /NAME; may be given several times", func(path string) error {
		o.Dataplanes = append(o.Dataplanes, path)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.Libraries == "" || o.Licences == "" || o.EnvoyVersion == "" || o.LibrariesVersion == "" {
		return errors.New("--libc, --licences, --envoy-version and --libc-version are required; 'make images' gives them")
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	for name, i := range o.Images() {
		archive := filepath.Join(*out, name+".tar")
		if err := i.Write(archive); err != nil {
			return err
		}
		size, err := os.Stat(archive)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %s, %d MB\n", archive, i.Reference, size.Size()>>20)
	}
	return nil
}
