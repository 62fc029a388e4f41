// Package policies has the ValidatingAdmissionPolicies of the management cluster. They limit what the accounts of tenants, of the manager and of
// gateways may write, where RBAC and schemas cannot.
package policies

import (
	"embed"
	"io/fs"
	"strings"
)

// Files are the policies with their bindings, one YAML file each. A policy and its binding are named FILE.kubelb.k8c.io.
//
//go:embed *.yaml
var Files embed.FS

// Names returns the sorted names of the policies. Each binding has the name of its policy.
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
