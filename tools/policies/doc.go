// Package policies has no code: its tests put requests to the ValidatingAdmissionPolicies of package api/policies, by the API server's own admission
// plugin and with the managedFields that the API server's own field manager writes.
//
// They show what each account is refused, and that what the products write is taken, without a cluster. Tests of tools/e2e and tools/install show the
// same of real API servers, with RBAC and the charts' accounts.
package policies
