package policies

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	cleanup      = "kubelb.k8c.io/cleanup"
	loadBalancer = "apiVersion: kubelb.k8c.io/v1alpha1\nkind: LoadBalancer\nmetadata: {namespace: tenant-a, name: web}\nspec: {ports: [{name: http, port: 80, protocol: TCP}]}"
	addresses    = "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Addresses\nmetadata: {namespace: tenant-a, name: default}\nspec: {addresses: [{ip: 198.51.100.11}]}"
)

func finalizers(list ...string) func(metav1.Object) {
	return func(o metav1.Object) { o.SetFinalizers(list) }
}

// T23: Kubernetes does not bound the list metadata.finalizers, and all caches hold it.
func TestATenantCannotRepeatAFinalizer(t *testing.T) {
	s := newServer(t)
	web, nodes := object(t, loadBalancer), object(t, addresses)
	const refused = "metadata.finalizers"
	_, err := s.create(t, tenant, web)
	require.NoError(t, err, "kubelb-ccm sends none")
	held, err := s.create(t, tenant, changed(web, finalizers(cleanup)))
	require.NoError(t, err, "KubeLB's CCM may send the finalizer of LoadBalancers")
	_, err = s.create(t, tenant, changed(web, finalizers(cleanup, cleanup)))
	require.ErrorContains(t, err, refused)
	_, err = s.create(t, tenant, changed(web, finalizers(slices.Repeat([]string{cleanup}, 60_000)...)))
	require.ErrorContains(t, err, refused)

	_, err = s.update(t, tenant, held, held)
	require.NoError(t, err)
	_, err = s.update(t, tenant, held, changed(held, finalizers(cleanup, cleanup)))
	require.ErrorContains(t, err, refused)
	// A LoadBalancer that already has repeated or other finalizers can be updated.
	many := changed(web, finalizers(cleanup, cleanup, "example.com/operators"))
	_, err = s.update(t, tenant, many, many)
	require.NoError(t, err)

	// A tenant cannot repeat a finalizer that an operator has added to its Addresses.
	kept := changed(nodes, finalizers("example.com/operators"))
	_, err = s.update(t, tenant, kept, kept)
	require.NoError(t, err)
	_, err = s.update(t, tenant, kept, nodes)
	require.NoError(t, err)
	_, err = s.update(t, tenant, kept, changed(nodes, finalizers(slices.Repeat([]string{"example.com/operators"}, 60_000)...)))
	require.ErrorContains(t, err, refused)
}
