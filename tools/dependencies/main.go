// Command dependencies checks the modules in the built programs for known vulnerabilities and for their licences.
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

The first looks for vulnerable functions of modules and of the standard library that the programs contain. It takes Go's vulnerability database from the
module proxy (golang.org/x/vulndb). It fails if it finds a vulnerability that is not in the list "accepted" of vulnerabilities.go. The second fails if a
module has no licence that the project may be shipped with, and writes the licence texts of all modules into the file.
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
