// Package hubhosts knows the addresses of the management cluster's own hosts, which no tenant may target: gateways tell theirs in the status of
// their Gateway objects, Nodes theirs.
package hubhosts

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Cached has a cache keep of Nodes what is needed of them: addresses, and whether they are cordoned.
func Cached() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{&corev1.Node{}: {Transform: func(o any) (any, error) {
		node, is := o.(*corev1.Node)
		if !is {
			return o, nil
		}
		return &corev1.Node{TypeMeta: node.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
			Spec: corev1.NodeSpec{Unschedulable: node.Spec.Unschedulable}, Status: corev1.NodeStatus{Addresses: node.Status.Addresses}}, nil
	}}}
}

// askFor is how long it is asked whether Nodes can be read.
const askFor = 5 * time.Second

// Readable tells whether the Nodes can be read. An API server that is away is waited for like for all else.
func Readable(ctx context.Context, reader client.Reader) bool {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	return !apierrors.IsForbidden(reader.List(ctx, &corev1.NodeList{}, client.Limit(1)))
}

// OfNode are a Node's addresses.
func OfNode(node *corev1.Node) []netip.Addr {
	var texts []string
	for _, a := range node.Status.Addresses {
		texts = append(texts, a.Address)
	}
	return Parsed(texts)
}

// Parsed are the addresses among the texts; names are left out.
func Parsed(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil {
			out = append(out, address.Unmap())
		}
	}
	return out
}

// Own are all addresses of this host that others could name, sorted. Of interfaces that hold the cluster's Services (kube-ipvs0) none is left
// out: they are this host's as well.
func Own() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Addr
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if address := prefix.Addr().Unmap(); err == nil && address.IsGlobalUnicast() {
			own = append(own, address)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own)
}
