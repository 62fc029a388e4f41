// Command dependencies looks at what the products are built of, as it stands in the programs themselves: at known vulnerabilities, and at licences.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "dependencies:", err)
		os.Exit(1)
	}
}

const usage = `dependencies vulnerabilities [--database=VERSION] PROGRAM...
dependencies licences [--out=FILE] PROGRAM...

The first asks Go's vulnerability database, which it takes from the module proxy (golang.org/x/vulndb), for what the programs call of their modules and
of the standard library, and fails if there is anything that is not accepted below, with a reason. The second fails if a module's licence is none that
the project may be shipped with, and writes the texts of all into the file.
`

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stdout, usage)
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("dependencies "+args[0], flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() { fmt.Fprint(stdout, usage+"\n"); flags.PrintDefaults() }
	switch args[0] {
	case "vulnerabilities":
		database := flags.String("database", pinnedDatabase, "version of golang.org/x/vulndb, or latest")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return vulnerabilities(ctx, *database, flags.Args(), stdout)
	case "licences":
		out := flags.String("out", "", "file for the texts of all licences")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return licences(ctx, *out, flags.Args(), stdout)
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], usage)
}
