package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const tenantObject = "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Tenant\nmetadata: {name: a}\nspec: {backendCIDRs: [198.51.100.0/24]}"

// T17: the garbage collector deletes an object whose owner does not exist. An object with a finalizer that no program removes cannot be deleted.
func TestTheManagerCannotDeleteATenantOrMakeItUndeletable(t *testing.T) {
	s := newServer(t)
	const others, foreign = "example.com/backup", "example.com/for-ever"
	owned := func(o metav1.Object) {
		o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: "kubelb", UID: "00000000-0000-0000-0000-000000000000"}})
	}
	for _, text := range []string{tenantObject, loadBalancer, addresses} {
		bare := object(t, text)
		held := changed(bare, finalizers(others, cleanup))
		deleted := changed(held, func(o metav1.Object) { now := metav1.Now(); o.SetDeletionTimestamp(&now) })
		kind := bare.GetObjectKind().GroupVersionKind().Kind
		t.Run(kind, func(t *testing.T) {
			_, err := s.update(t, manager, bare, changed(bare, finalizers(cleanup)))
			require.NoError(t, err, "it adds its own")
			_, err = s.update(t, manager, held, changed(held, finalizers(others)))
			require.NoError(t, err, "it removes its own")
			_, err = s.update(t, manager, deleted, changed(deleted, finalizers(others)))
			require.NoError(t, err, "it removes its own")
			_, err = s.update(t, manager, deleted, changed(deleted, finalizers()))
			if kind == "Tenant" {
				require.ErrorContains(t, err, "metadata.finalizers")
			} else {
				require.NoError(t, err, "while a Tenant is deleted, it removes other finalizers, too")
			}
			for what, attempt := range map[string]struct {
				change func(metav1.Object)
				answer string
			}{
				"have the garbage collector delete it": {owned, "nothing else of them"},
				"make it undeletable":                  {finalizers(others, cleanup, foreign), "adds kubelb.k8c.io/cleanup"},
				"repeat its own finalizer":             {finalizers(others, cleanup, cleanup, cleanup), "adds kubelb.k8c.io/cleanup"},
				"remove another program's finalizer":   {finalizers(cleanup), "others only from"},
				"change its labels":                    {func(o metav1.Object) { o.SetLabels(map[string]string{"a": "b"}) }, "nothing else of them"},
			} {
				_, err := s.update(t, manager, held, changed(held, attempt.change))
				require.ErrorContains(t, err, attempt.answer, what)
			}
		})
	}
}
