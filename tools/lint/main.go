// Command lint is a tool for 'go vet -vettool'. It has the analyzers of go vet and of staticcheck, and finds unchecked errors, assignments without
// effect, and unused declarations. The go command caches its results for each package.
package main

import (
	"slices"

	"github.com/gordonklaus/ineffassign/pkg/ineffassign"
	"golang.org/x/tools/go/analysis/suite/vet"
	"golang.org/x/tools/go/analysis/unitchecker"
	"honnef.co/go/tools/analysis/lint"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
)

func main() {
	analyzers := append(slices.Clone(vet.Suite), ineffassign.Analyzer, uncheckedErrors(), unusedDeclarations())
	for _, a := range slices.Concat(staticcheck.Analyzers, simple.Analyzers, stylecheck.Analyzers) {
		if fits(a) {
			analyzers = append(analyzers, a.Analyzer)
		}
	}
	unitchecker.Main(analyzers...)
}

// fits reports whether the project uses an analyzer of staticcheck: all that staticcheck itself uses by default, but capitals in errors. Many errors
// begin with a name, such as Envoy or a Kubernetes kind.
func fits(a *lint.Analyzer) bool { return !a.Doc.NonDefault && a.Analyzer.Name != "ST1005" }
