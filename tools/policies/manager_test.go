package policies

import (
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/api/v1alpha1"
)

func quota(namespace, name, hard string) string {
	return "apiVersion: v1\nkind: ResourceQuota\nmetadata: {namespace: " + namespace + ", name: " + name + "}\nspec: {hard: {" + hard + "}}"
}

// T17: a quota on pods would prevent that gateways and controllers start.
func TestTheManagersQuotasLimitOnlyTenantsObjects(t *testing.T) {
	s := newServer(t)
	const objects = "count/loadbalancers.kubelb.k8c.io: 500, count/addresses.kubelb.k8c.io: 10"
	for what, text := range map[string]string{
		"a tenant's objects":      quota("tenant-a", v1alpha1.QuotaName, objects+", count/secrets: 50"),
		"a trial for all of them": quota("kubelb", v1alpha1.QuotaName+"-trial", objects),
	} {
		_, err := s.create(t, manager, object(t, text))
		require.NoError(t, err, what)
	}
	kept := object(t, quota("tenant-a", "kubelb", objects))
	_, err := s.update(t, manager, kept, kept)
	require.NoError(t, err)
	_, err = s.update(t, manager, kept, object(t, quota("tenant-a", "kubelb", "pods: 0")))
	require.ErrorContains(t, err, "spec.hard")

	for _, attempt := range []struct{ what, text, answer string }{
		{"forbid pods in its own namespace", quota("kubelb", "stop", "pods: 0"), "ResourceQuota kubelb-trial"},
		{"forbid pods by the quota of its trial", quota("kubelb", "kubelb-trial", "pods: 0"), "spec.hard"},
		{"forbid pods by a count", quota("kubelb", "kubelb-trial", "count/pods: 0"), "spec.hard"},
		{"forbid Secrets in its own namespace", quota("kubelb", "kubelb-trial", "count/secrets: 0"), "spec.hard"},
		{"limit the objects of its own namespace", quota("kubelb", "kubelb", objects), "ResourceQuota kubelb-trial"},
		{"create a second quota for a tenant", quota("tenant-a", "stop", objects), "ResourceQuota kubelb of a tenant"},
		{"forbid service accounts in a tenant's namespace", quota("tenant-a", "kubelb", "count/serviceaccounts: 0"), "spec.hard"},
		{"create a quota in another namespace", quota("kube-system", "kubelb", objects), "nowhere else"},
	} {
		t.Run(attempt.what, func(t *testing.T) {
			_, err := s.create(t, manager, object(t, attempt.text))
			require.ErrorContains(t, err, attempt.answer)
		})
	}
}
