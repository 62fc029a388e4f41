package main

import (
	"go/ast"
	"slices"
	"strings"

	"github.com/kisielk/errcheck/errcheck"
	"golang.org/x/tools/go/analysis"
)

// mayFail are functions that clean up, and that write text for people. Nobody could do anything about their errors.
var mayFail = []string{"fmt.Fprintf", "fmt.Fprintln", "fmt.Fprint", "golang.org/x/sys/unix.Close", "os.Remove", "os.RemoveAll", "(*text/tabwriter.Writer).Flush"}

// uncheckedErrors reports errors that nobody checks, outside of tests and generated files.
func uncheckedErrors() *analysis.Analyzer {
	return &analysis.Analyzer{
		Name:     "uncheckederrors",
		Doc:      "report errors that nobody checks, outside of tests and generated files",
		Requires: []*analysis.Analyzer{errcheck.Analyzer},
		Run: func(pass *analysis.Pass) (any, error) {
			unchecked := pass.ResultOf[errcheck.Analyzer].(errcheck.Result).UncheckedErrors
			for _, file := range pass.Files {
				tokens := pass.Fset.File(file.FileStart)
				if strings.HasSuffix(tokens.Name(), "_test.go") || ast.IsGenerated(file) {
					continue
				}
				for _, e := range unchecked {
					if e.Pos.Filename == tokens.Name() && matters(e.FuncName) {
						pass.Reportf(tokens.Pos(e.Pos.Offset), "the error of %s is not checked", e.FuncName)
					}
				}
			}
			return nil, nil
		},
	}
}

// matters reports whether an error of the function has to be checked. A statement that only receives an error from a channel has no function.
func matters(function string) bool {
	return function != "" && !strings.HasSuffix(function, ").Close") && !slices.Contains(mayFail, function)
}
