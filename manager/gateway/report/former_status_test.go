package report

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func refusedBefore() v1alpha1.GatewayStatus {
	return v1alpha1.GatewayStatus{AppliedResourceVersion: "10", AnnouncedResourceVersion: "10", Unlisted: []string{"tenant-b"},
		Failures: []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/x", Record: "frontend TCP 203.0.113.1:80", Message: "full"}, {Record: "backend ebpf", Message: "busy"}},
		Silent:   []v1alpha1.GatewaySilence{{Family: corev1.IPv6Protocol, Message: "no router is told of it"}}}
}

func TestAVersionAndItsRefusalsAreOfTheSameTime(t *testing.T) {
	before := refusedBefore()
	of := func(served bool, version string) Report {
		own := v1alpha1.GatewayFailure{LoadBalancer: "tenant-a/y", Record: "frontend TCP 203.0.113.2:80", Message: "full"}
		r := Report{Served: served, GatewayStatus: v1alpha1.GatewayStatus{AppliedResourceVersion: version, Failures: []v1alpha1.GatewayFailure{own, {Record: "backend nft", Message: "busy"}}}}
		r.carryOver(before)
		return r
	}
	records := func(r Report) (all []string) {
		for _, f := range r.Failures {
			all = append(all, f.Record)
		}
		return all
	}
	const x, y, left = "frontend TCP 203.0.113.1:80", "frontend TCP 203.0.113.2:80", "backend nft"
	require.Equal(t, []string{x, left}, records(of(false, "")), "the former version, with the former refusals")
	require.Equal(t, []string{y, left}, records(of(false, "11")), "this process knows which tenants are behind")
	require.Equal(t, []string{y, left}, records(of(true, "")), "it knows all refusals")
}
