// Package policies has only tests. They evaluate the ValidatingAdmissionPolicies of package api/policies with the API server's own admission plugin, on
// objects whose managedFields the API server's own field manager has written.
//
// They show without a cluster what each service account is refused, and that the policies allow all that the programs write. Tests of tools/e2e and
// tools/install show the same on real API servers, with RBAC and the charts' service accounts.
package policies
