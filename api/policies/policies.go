// Package policies holds the ValidatingAdmissionPolicies of the management cluster: what RBAC and schemas cannot say about what the accounts of
// tenants, of the manager and of gateways may write.
package policies

import "embed"

// Files are the policies with their bindings, one YAML file each.
//
//go:embed *.yaml
var Files embed.FS
