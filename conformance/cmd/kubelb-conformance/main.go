// Command kubelb-conformance judges a dataplane by packets.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"kubelb.k8c.io/conformance"
)

func main() {
	backend := flag.String("backend", "", "path")
	name := flag.String("case", "", "case")
	flag.Parse()
	o := conformance.Options{Progress: func(r conformance.Run) {
		fmt.Println(r.Outcome, r.Case, r.Family, r.Duration)
		if r.Outcome == conformance.Failed {
			fmt.Println(r.Reason, r.Log)
		}
	}}
	if *name != "" {
		o.Cases = strings.Split(*name, ",")
	}
	report, err := conformance.Judge(context.Background(), conformance.Plugin(*backend), o)
	fmt.Println(report.Counts, report.Duration, err)
	os.Exit(report.Counts[conformance.Failed])
}
