// Package policies holds the ValidatingAdmissionPolicies of the management cluster: what RBAC and schemas cannot say about what the accounts of
// tenants, of the manager and of gateways may write.
package policies

import (
	"embed"
	"io/fs"
	"strings"
)

// Files are the policies with their bindings, one YAML file each. A policy and its binding have the name of their file, before .kubelb.k8c.io.
//
//go:embed *.yaml
var Files embed.FS

// Names are the names of the policies, and of their bindings, in order.
func Names() ([]string, error) {
	files, err := fs.Glob(Files, "*.yaml")
	if err != nil {
		return nil, err
	}
	for i, file := range files {
		files[i] = strings.TrimSuffix(file, ".yaml") + ".kubelb.k8c.io"
	}
	return files, nil
}
