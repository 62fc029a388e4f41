package policies

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const gatewayObject = "apiVersion: kubelb.k8c.io/v1alpha1\nkind: Gateway\nmetadata: {name: one, labels: {site: north, rack: \"7\"}}\nspec: {}"

func labelled(added map[string]string, removed ...string) func(metav1.Object) {
	return func(o metav1.Object) {
		labels := maps.Clone(o.GetLabels())
		maps.Copy(labels, added)
		for _, key := range removed {
			delete(labels, key)
		}
		o.SetLabels(labels)
	}
}

// T18: AddressPools select gateways by labels. A gateway that could write its own labels would get any tenant's connections.
func TestAGatewayCannotChangeItsLabels(t *testing.T) {
	const refused = "metadata.labels"
	s := newServer(t)
	one := object(t, gatewayObject)
	_, err := s.create(t, gateway, one)
	require.NoError(t, err, "it creates its Gateway with its labels")
	_, err = s.update(t, gateway, one, one)
	require.NoError(t, err)
	for what, change := range map[string]func(metav1.Object){
		"add a label of other gateways": labelled(map[string]string{"tenant": "b"}),
		"have another value":            labelled(map[string]string{"site": "south"}),
		"have an empty value":           labelled(map[string]string{"site": ""}),
		"remove a label":                labelled(nil, "site"),
		"remove all labels":             func(o metav1.Object) { o.SetLabels(nil) },
	} {
		_, err := s.update(t, gateway, one, changed(one, change))
		require.ErrorContains(t, err, refused, what)
	}

	// An upgrade of the chart gives all gateways its new labels.
	s = newServer(t, "dyn({})", `dyn({"site":"south","tier":""})`)
	_, err = s.update(t, gateway, one, changed(one, labelled(map[string]string{"site": "south", "tier": ""})))
	require.NoError(t, err)
	_, err = s.update(t, gateway, one, changed(one, labelled(map[string]string{"site": "east"})))
	require.ErrorContains(t, err, refused)
	_, err = s.update(t, gateway, one, changed(one, labelled(map[string]string{"site": "south"}, "rack")))
	require.ErrorContains(t, err, refused)
}

// T18: the caches of the controllers and of all gateways hold every Gateway with all its metadata.
func TestAGatewayWritesNoFinalizersOwnersOrAnnotations(t *testing.T) {
	s := newServer(t)
	for what, change := range map[string]func(metav1.Object){
		"a finalizer":            finalizers("example.com/for-ever"),
		"one finalizer repeated": finalizers(slices.Repeat([]string{"example.com/for-ever"}, 60_000)...),
		"an owner": func(o metav1.Object) {
			o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: "kubelb", UID: "00000000-0000-0000-0000-000000000000"}})
		},
		"an annotation": func(o metav1.Object) { o.SetAnnotations(map[string]string{"a": strings.Repeat("a", 200_000)}) },
	} {
		for _, text := range []string{gatewayObject, gatewaysLease} {
			o := object(t, text)
			if what == "an annotation" && text == gatewaysLease {
				continue // gateways publish their view in an annotation
			}
			_, err := s.update(t, gateway, o, changed(o, change))
			require.ErrorContains(t, err, "leave finalizers, owners and other annotations", what)
			_, err = s.create(t, gateway, changed(o, change))
			require.ErrorContains(t, err, "leave finalizers, owners and other annotations", what)
			// A gateway can write an object that already has this from an operator.
			kept := changed(o, change)
			_, err = s.update(t, gateway, kept, kept)
			require.NoError(t, err, what)
		}
	}
}
