package convert

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

const (
	// maxHostname is kept of a host name, which no target has: a message quotes it.
	maxHostname = 64
	// maxFinalizers are kept: KubeLB has three, and nothing bounds the list of an object.
	maxFinalizers = 8
)

// Cached has a cache keep of what tenants write what is looked at, however much there is besides. An object from it cannot be written back,
// but for its status.
func Cached() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{&v1alpha1.LoadBalancer{}: {Transform: trim}, &v1alpha1.Addresses{}: {Transform: trim}}
}

func trim(o any) (any, error) {
	switch object := o.(type) {
	case *v1alpha1.LoadBalancer:
		object.ObjectMeta = trimmedMeta(&object.ObjectMeta)
		object.Spec.Hostname, object.Status.Service = "", nil
		if len(object.Spec.Endpoints) > 1 {
			object.Spec.Endpoints = slices.Clone(object.Spec.Endpoints[:1])
		}
		for i := range object.Spec.Endpoints {
			object.Spec.Endpoints[i].Name = ""
		}
		pack(object)
	case *v1alpha1.Addresses:
		object.ObjectMeta = trimmedMeta(&object.ObjectMeta)
		trimAddresses(object.Spec.Addresses)
	}
	return o, nil
}

func trimmedMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Finalizers: trimmedFinalizers(m.Finalizers)}
	for _, label := range []string{v1alpha1.LabelOriginNamespace, v1alpha1.LabelOriginName, v1alpha1.LabelTenant} {
		if value, has := m.Labels[label]; has {
			metav1.SetMetaDataLabel(&out, label, value)
		}
	}
	out.Annotations = asked(m.Annotations)
	return out
}

// trimmedFinalizers are KubeLB's own, each once, since nobody asks the cache for others. Who removes one reads the object from the API server.
func trimmedFinalizers(list []string) (out []string) {
	for _, f := range list {
		ours := strings.HasPrefix(f, v1alpha1.GroupVersion.Group+"/")
		if ours && (len(out) < maxFinalizers || f == v1alpha1.CleanupFinalizer) && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// trimAddresses: an address counts where there is one. A part of a longer text would keep the whole of it.
func trimAddresses(list []v1alpha1.EndpointAddress) {
	for i := range list {
		switch a := &list[i]; {
		case a.IP != "":
			a.Hostname = ""
		case len(a.Hostname) > maxHostname:
			a.Hostname = strings.Clone(a.Hostname[:maxHostname])
		}
	}
}
