package main

import (
	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/unused"
)

// unusedDeclarations reports what a package, with its tests, declares and does not use. Command staticcheck does it by U1000 in a way of its own, so that
// the analyzer itself reports nothing.
func unusedDeclarations() *analysis.Analyzer {
	return &analysis.Analyzer{
		Name:     "unused",
		Doc:      "report declarations that the package does not use",
		Requires: []*analysis.Analyzer{unused.Analyzer.Analyzer},
		Run: func(pass *analysis.Pass) (any, error) {
			for _, o := range pass.ResultOf[unused.Analyzer.Analyzer].(unused.Result).Unused {
				for _, file := range pass.Files {
					if tokens := pass.Fset.File(file.FileStart); tokens.Name() == o.Position.Filename {
						pass.Reportf(tokens.Pos(o.Position.Offset), "%s %s is not used", o.Kind, o.Name)
					}
				}
			}
			return nil, nil
		},
	}
}
