// Package policies holds the ValidatingAdmissionPolicies of the management cluster: what a tenant's CCM may not write although its Role lets
// it, and no schema can say.
package policies

import "embed"

// Files are the policies with their bindings, one YAML file each.
//
//go:embed *.yaml
var Files embed.FS
