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
	// maxHostname is the length to which a host name is cut: it is only used in messages.
	maxHostname = 64
	// maxFinalizers is how many finalizers are kept. KubeLB has three, and the list of an object is not bounded.
	maxFinalizers = 8
)

// Cached makes a cache keep only the fields of tenants' objects that are read, so that their other fields need no memory. An object from the cache cannot be
// written back, except for its status.
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
	out.Annotations = trimAnnotations(m.Annotations)
	return out
}

// trimmedFinalizers returns KubeLB's own finalizers, each once. Others are not read from the cache: code that removes one reads the object from the API
// server.
func trimmedFinalizers(list []string) (out []string) {
	for _, f := range list {
		ours := strings.HasPrefix(f, v1alpha1.GroupVersion.Group+"/")
		if ours && (len(out) < maxFinalizers || f == v1alpha1.CleanupFinalizer) && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// trimAddresses removes the host name of each target with an IP address, and cuts other host names. strings.Clone: a substring would keep the whole text in
// memory.
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
