// Package crds has the CustomResourceDefinitions of package v1alpha1, generated from its types.
package crds

import "embed"

// Files are the definitions, one YAML file each.
//
//go:embed *.yaml
var Files embed.FS
