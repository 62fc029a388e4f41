// Package hubhosts finds the addresses of the management cluster's own hosts, which no tenant may target: they are in the status of Gateway objects and
// of Nodes.
package hubhosts

import (
	"context"
	"fmt"
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

// Cached makes a cache keep only the addresses of Nodes, and whether they are cordoned.
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

// readTimeout bounds the check whether Nodes can be read.
const readTimeout = 5 * time.Second

// CanReadNodes reports whether RBAC allows to read Nodes. The error says that this is not known, since the API server did not answer.
func CanReadNodes(ctx context.Context, reader client.Reader) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err := reader.List(ctx, &corev1.NodeList{}, client.Limit(1))
	if apierrors.IsForbidden(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list Nodes: %w", err)
	}
	return true, nil
}

// NodeAddresses returns the addresses of a Node.
func NodeAddresses(node *corev1.Node) []netip.Addr {
	var texts []string
	for _, a := range node.Status.Addresses {
		texts = append(texts, a.Address)
	}
	return ParseAddresses(texts)
}

// ParseAddresses returns the addresses among the texts. It skips names.
func ParseAddresses(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil {
			out = append(out, address.Unmap())
		}
	}
	return out
}

// LocalAddresses returns all global addresses of this host, sorted. Addresses of Services on the interface kube-ipvs0 are among them: they are also addresses of
// this host.
func LocalAddresses() []netip.Addr {
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
