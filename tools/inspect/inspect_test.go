package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/model"
)

var now = time.Unix(1_800_000_000, 0)

func is(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: 1}
}

// healthy is a hub with one gateway, pool, tenant and LoadBalancer, which is served.
func healthy() *Snapshot {
	holder, renewed := "g1/1", metav1.NewMicroTime(now.Add(-200*time.Millisecond))
	lb := v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "uid-1", Generation: 1,
		Labels: map[string]string{v1alpha1.LabelOriginNamespace: "shop", v1alpha1.LabelOriginName: "web"}},
		Spec: v1alpha1.LoadBalancerSpec{Endpoints: []v1alpha1.LoadBalancerEndpoints{{AddressesReference: &v1alpha1.AddressesReference{Name: "default"}}}},
		Status: v1alpha1.LoadBalancerStatus{Addresses: []v1alpha1.AllocatedAddress{{Address: "203.0.113.1", Pool: "public"}},
			LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}}}}
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionAddressAllocated, v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionReady} {
		lb.Status.Conditions = append(lb.Status.Conditions, is(kind, metav1.ConditionTrue, kind, "it is so"))
	}
	return &Snapshot{Now: now,
		Gateways: []v1alpha1.Gateway{{ObjectMeta: metav1.ObjectMeta{Name: "g1"}, Status: v1alpha1.GatewayStatus{Backend: v1alpha1.GatewayBackend{Name: "nftables"}, Frontends: 1, AnnouncedAddresses: 1,
			Conditions: []metav1.Condition{is(v1alpha1.ConditionReady, metav1.ConditionTrue, "InSync", "")}}}},
		Leases: map[string]coordinationv1.Lease{"g1": {Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed}}},
		Pools: []v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "public"}, Status: v1alpha1.AddressPoolStatus{IPv4: &v1alpha1.AddressCount{Used: 1, Free: "13"},
			Conditions: []metav1.Condition{is(v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready", "")}}}},
		Tenants:       []v1alpha1.Tenant{{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.TenantSpec{BackendCIDRs: []string{"198.51.100.0/24"}}, Status: v1alpha1.TenantStatus{Phase: v1alpha1.TenantReady}}},
		Addresses:     []v1alpha1.Addresses{{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant-a", Name: "default"}, Spec: v1alpha1.AddressesSpec{Addresses: []v1alpha1.EndpointAddress{{IP: "198.51.100.11"}}}}},
		LoadBalancers: []v1alpha1.LoadBalancer{lb},
	}
}

// electedAt returns the controllers' Lease, renewed at this time.
func electedAt(renewed time.Time) *coordinationv1.Lease {
	holder, at, seconds := "host_1", metav1.NewMicroTime(renewed), int32(15)
	return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &at, LeaseDurationSeconds: &seconds}}
}

func (h *Snapshot) set(kind, reason, message string) {
	for i := range h.LoadBalancers[0].Status.Conditions {
		if c := &h.LoadBalancers[0].Status.Conditions[i]; c.Type == kind || c.Type == v1alpha1.ConditionReady {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason, message
		}
	}
}

func TestAHealthyHubHasNoProblems(t *testing.T) {
	s := healthy().Status()
	require.Empty(t, s.Problems)
	require.False(t, s.Broken())
	var page strings.Builder
	require.NoError(t, s.Text(&page))
	require.Equal(t, `GATEWAY  STATE  BACKEND   FRONTENDS  ADDRESSES  BGP
g1       Ready  nftables  1          1          -

POOL    STATE  USED4  FREE4  USED6  FREE6
public  Ready  1      13     0      -

TENANT  STATE  LOADBALANCERS  READY
a       Ready  1              1

no problems
`, page.String())
	h := healthy()
	require.True(t, h.Explain(&h.LoadBalancers[0]).Served())
}

// Each fault is on the page, and explain stops at it.
func TestFaultsAreShownWithTheFix(t *testing.T) {
	for name, c := range map[string]struct {
		fault       func(*Snapshot)
		problem     string
		broken      bool
		step, stops string
	}{
		"no gateway":                {func(h *Snapshot) { h.Gateways = nil }, "there is no gateway", true, "gateways work", "there is no gateway: start a kubelb-manager"},
		"a crashed gateway":         {func(h *Snapshot) { h.Now = now.Add(time.Minute) }, "nothing has been heard of it for 1m0s", true, "gateways work", "g1 is gone"},
		"a gateway without a Lease": {func(h *Snapshot) { h.Leases, h.Namespace = nil, "default" }, "it has no Lease in namespace default", true, "gateways work", "g1 has no Lease in namespace default"},
		"a gateway that cannot write": {func(h *Snapshot) {
			lease := h.Leases["g1"]
			lease.Annotations = map[string]string{"kubelb.k8c.io/unwritten": "gateways.kubelb.k8c.io is forbidden"}
			h.Leases["g1"] = lease
		}, "it cannot write its Gateway object, which is out of date: gateways.kubelb.k8c.io is forbidden", true, "gateways work", "g1 cannot write its Gateway object"},
		"a gateway that has just returned": {func(h *Snapshot) {
			h.Gateways[0].Status.Conditions[0] = is(v1alpha1.ConditionReady, metav1.ConditionUnknown, v1alpha1.ReasonNotHeard, "the gateway has not renewed its Lease")
		}, "it has not reported its state yet", true, "gateways work", "g1 has not reported its state yet"},
		"a gateway with an unknown state": {func(h *Snapshot) {
			for i := range h.LoadBalancers[0].Status.Conditions {
				if c := &h.LoadBalancers[0].Status.Conditions[i]; c.Type == v1alpha1.ConditionAnnounced || c.Type == v1alpha1.ConditionReady {
					c.Status, c.Reason, c.Message = metav1.ConditionUnknown, "GatewaySilent", "203.0.113.1 is not announced: gateway g1: the gateway has not renewed its Lease"
				}
			}
		}, "error: loadbalancer tenant-a/uid-1 (Service shop/web): GatewaySilent", true, "its addresses are announced", "GatewaySilent: 203.0.113.1 is not announced"},
		"controllers that are gone": {func(h *Snapshot) { h.Elected = electedAt(now.Add(-5 * time.Minute)) },
			"error: hub: no kubelb-manager has run the controllers for 5m0s", true, "a controller has seen it", "no kubelb-manager has run the controllers for 5m0s: the status of LoadBalancers, address pools and tenants is that old. It was Ready=True"},
		"controllers that work": {func(h *Snapshot) { h.Elected = electedAt(now.Add(-20 * time.Second)) }, "no problems", false, "", ""},
		"a changed tenant":      {func(h *Snapshot) { h.Tenants[0].Generation = 2 }, "a       Pending  1", false, "", ""},
		"a changed pool":        {func(h *Snapshot) { h.Pools[0].Generation = 2 }, "public  Unknown  1", false, "", ""},
		"a broken backend": {func(h *Snapshot) {
			h.Gateways[0].Status.Conditions[0] = is(v1alpha1.ConditionReady, metav1.ConditionFalse, "BackendFailed", "no nf_tables")
		}, "gateway g1: BackendFailed: no nf_tables", true, "gateways work", "g1 BackendFailed: no nf_tables"},
		"a host that lacks a module": {func(h *Snapshot) {
			h.Gateways[0].Status.Conditions = []metav1.Condition{
				is(v1alpha1.ConditionReady, metav1.ConditionFalse, "BackendFailed", "this host lacks what the dataplane needs:\nmodule nft_ct: not loaded; run: modprobe nft_ct"),
				is("HostModules", metav1.ConditionFalse, v1alpha1.ReasonHostMissing, "module nft_ct: not loaded; run: modprobe nft_ct")}
		}, "gateway g1: BackendFailed: this host lacks what the dataplane needs: module nft_ct: not loaded; run: modprobe nft_ct", true, "gateways work", "run: modprobe nft_ct"},
		"a host that lacks something for a feature": {func(h *Snapshot) {
			h.Gateways[0].Status.Conditions = append(h.Gateways[0].Status.Conditions, is("HostSysctls", metav1.ConditionFalse, v1alpha1.ReasonHostLimited, "sysctl one: is 0\nsysctl two: is 0; run: sysctl -w two=1"))
		}, "warning: gateway g1: HostSysctls: sysctl two: is 0; run: sysctl -w two=1", false, "", ""},
		"a refused record": {func(h *Snapshot) {
			h.Gateways[0].Status.Failures = []v1alpha1.GatewayFailure{{LoadBalancer: "tenant-a/uid-1", Record: "frontend TCP 203.0.113.1:80", Message: "direct is not supported"}}
			h.set(v1alpha1.ConditionProgrammed, "DataplaneRefused", "gateway g1: direct is not supported")
		}, "direct is not supported", true, "a dataplane holds it", "DataplaneRefused: gateway g1: direct is not supported"},
		"more refused records than the status names": {func(h *Snapshot) { h.Gateways[0].Status.Unlisted = []string{"tenant-b"} },
			"more refused LoadBalancers in namespace tenant-b", true, "", ""},
		"no BGP session": {func(h *Snapshot) {
			h.Gateways[0].Status.BGPSessions = []v1alpha1.BGPSession{{Peer: "tor", State: v1alpha1.BGPDown}}
			h.Gateways[0].Status.Conditions = append(h.Gateways[0].Status.Conditions, is(v1alpha1.ConditionBGPEstablished, metav1.ConditionFalse, "SessionDown", "tor (192.0.2.254): hold timer expired"))
			h.set(v1alpha1.ConditionAnnounced, "WaitingForAnnouncement", "no gateway answers for its addresses yet; gateway g1: tor (192.0.2.254): hold timer expired")
		}, "SessionDown: tor", true, "its addresses are announced", "hold timer expired"},
		"a full pool": {func(h *Snapshot) {
			h.Pools[0].Status.IPv4 = &v1alpha1.AddressCount{Used: 14, Free: "0"}
			h.set(v1alpha1.ConditionAddressAllocated, "PoolExhausted", "no free IPv4 address in public")
		}, "0 of its 14 IPv4 addresses are free", true, "it has addresses", "PoolExhausted: no free IPv4 address in public"},
		"an overlapping pool": {func(h *Snapshot) {
			h.Pools[0].Status.Conditions[0] = is(v1alpha1.ConditionReady, metav1.ConditionFalse, "Overlap", "overlaps AddressPool other")
		}, "addresspool public: overlaps AddressPool other", true, "", ""},
		"no such tenant":    {func(h *Snapshot) { h.Tenants = nil }, "error: namespace tenant-a: 1 LoadBalancers belong to no Tenant, so no gateway serves them", true, "its tenant is served", "namespace tenant-a needs Tenant a, which does not exist"},
		"a disabled tenant": {func(h *Snapshot) { h.Tenants[0].Spec.LoadBalancer.Disable = true }, "spec.loadBalancer.disable is set", false, "its tenant is served", "spec.loadBalancer.disable of Tenant a is set"},
		"no networks":       {func(h *Snapshot) { h.Tenants[0].Spec.BackendCIDRs = nil }, "", false, "its tenant is served", "spec.backendCIDRs of Tenant a is empty"},
		"a malformed object": {func(h *Snapshot) {
			h.set(v1alpha1.ConditionAccepted, "InvalidSourceRange", `"everybody" is not a CIDR`)
		}, "InvalidSourceRange", true, "it is accepted", `"everybody" is not a CIDR`},
		"a CCM that has written nothing": {func(h *Snapshot) { h.Addresses = nil }, "error: loadbalancer tenant-a/uid-1 (Service shop/web): there is no Addresses object", true, "its tenant's nodes are known", "the tenant's CCM writes it. Is the CCM running?"},
		"no nodes":                       {func(h *Snapshot) { h.Addresses[0].Spec.Addresses = nil }, "error: loadbalancer tenant-a/uid-1 (Service shop/web): Addresses tenant-a/default is empty", true, "its tenant's nodes are known", "the tenant has no node"},
		"no local pod":                   {func(h *Snapshot) { h.LoadBalancers[0].Spec.Endpoints[0].LocalAddresses = &[]v1alpha1.EndpointAddress{} }, "no problems", false, "", ""},
		"no node of a family": {func(h *Snapshot) {
			h.LoadBalancers[0].Status.Addresses = append(h.LoadBalancers[0].Status.Addresses, v1alpha1.AllocatedAddress{Address: "2001:db8:f::1"})
		}, "no node that may take traffic has an IPv6 address", true, "its tenant's nodes are known", "no node that may take traffic has an IPv6 address: connections to 2001:db8:f::1 are refused"},
		"no controller":                        {func(h *Snapshot) { h.LoadBalancers[0].Status = v1alpha1.LoadBalancerStatus{} }, "no controller has set its status", true, "a controller has seen it", "no kubelb-manager with the controller role runs"},
		"a change that is not applied yet":     {func(h *Snapshot) { h.LoadBalancers[0].Generation = 2 }, "warning: loadbalancer tenant-a/uid-1 (Service shop/web): it is Ready as it was before its last change (generation 1 of 2)", false, "it is accepted", "generation 1 of 2"},
		"a LoadBalancer that is being deleted": {func(h *Snapshot) { h.LoadBalancers[0].DeletionTimestamp = &metav1.Time{Time: now} }, "", false, "it is not being deleted", "is gone once gateways have withdrawn its addresses"},
		"a draining gateway":                   {func(h *Snapshot) { h.Gateways[0].Spec.Draining = true }, "it drains", true, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := healthy()
			c.fault(h)
			s := h.Status()
			require.Equal(t, c.broken, s.Broken(), "%v", s.Problems)
			var page strings.Builder
			require.NoError(t, s.Text(&page))
			require.Contains(t, page.String(), c.problem)
			e := h.Explain(&h.LoadBalancers[0])
			if c.step == "" {
				require.True(t, e.Served(), "%v", e.Steps)
				return
			}
			last := e.Steps[len(e.Steps)-1]
			require.False(t, last.Holds)
			require.Equal(t, c.step, last.What)
			require.Contains(t, last.Message, c.stops)
		})
	}
}

// The tenant runs the pods. explain shows that no node has a ready pod, but that is no fault of the load balancer.
func TestAServiceWithoutLocalPodsIsNoFault(t *testing.T) {
	h := healthy()
	h.LoadBalancers[0].Spec.Endpoints[0].LocalAddresses = &[]v1alpha1.EndpointAddress{}
	e := h.Explain(&h.LoadBalancers[0])
	require.True(t, e.Served())
	messages := map[string]string{}
	for _, step := range e.Steps {
		messages[step.What] = step.Message
	}
	for _, step := range []string{"its tenant's nodes are known", "connections to it are answered"} {
		require.Equal(t, "externalTrafficPolicy is Local, and no node has a ready pod of the Service: connections are refused until one has", messages[step])
	}
	require.False(t, h.Status().Broken())
	require.Equal(t, "Ready", h.Status().Tenants[0].State)
}

// Traffic continues without a CCM, with what the CCM wrote last.
func TestASilentCCMIsAWarningAndARemark(t *testing.T) {
	const since = "the tenant's CCM has not renewed its Lease since 2026-01-02T12:00:05Z: later changes of Services and nodes are not known here"
	h := healthy()
	h.Tenants[0].Status.Conditions = append(h.Tenants[0].Status.Conditions, is(v1alpha1.ConditionConnected, metav1.ConditionUnknown, v1alpha1.ReasonCCMSilent, since))
	s := h.Status()
	require.Equal(t, []Problem{{Warning, "tenant a", since}}, s.Problems)
	require.False(t, s.Broken())
	e := h.Explain(&h.LoadBalancers[0])
	require.True(t, e.Served())
	require.Contains(t, e.Steps, Step{"its tenant's nodes are known", true, "1 addresses of nodes; " + since})

	h.Tenants[0].Spec.Revoked = true
	for _, p := range h.Status().Problems {
		require.NotContains(t, p.Message, since, "a revoked tenant has no credentials, so that its CCM is silent")
	}
	h = healthy()
	h.Tenants[0].Status.Conditions = append(h.Tenants[0].Status.Conditions, is(v1alpha1.ConditionConnected, metav1.ConditionTrue, v1alpha1.ReasonCCMHeard, "it renews its Lease"))
	require.Empty(t, h.Status().Problems)
}

func TestOnlyGatewaysThatThePoolChoosesCountForALoadBalancer(t *testing.T) {
	h := healthy()
	other := h.Gateways[0].DeepCopy()
	other.Name, other.Labels = "g2", map[string]string{"site": "two"}
	h.Gateways, h.Leases["g2"] = append(h.Gateways, *other), h.Leases["g1"]
	step := func() Step {
		steps := h.Explain(&h.LoadBalancers[0]).Steps
		return steps[slices.IndexFunc(steps, func(s Step) bool { return s.What == "gateways work" })]
	}
	require.Equal(t, Step{"gateways work", true, "g1, g2"}, step())
	h.Pools[0].Spec.GatewaySelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "two"}}
	require.Equal(t, Step{"gateways work", true, "g2"}, step())
	delete(h.Leases, "g2")
	require.False(t, step().Holds, "g1 works, but the pool does not choose it")
	require.Contains(t, step().Message, "g2 has no Lease")
	h.Pools[0].Spec.GatewaySelector.MatchLabels["site"] = "three"
	require.Equal(t, Step{"gateways work", false, "its address pools choose none of the gateways: AddressPool public chooses gateways with site=three; label one: kubectl label gateways.kubelb.k8c.io GATEWAY KEY=VALUE"}, step())
}

func TestALoadBalancerIsFoundByAllItsNames(t *testing.T) {
	h := healthy()
	for _, name := range []string{"uid-1", "tenant-a/uid-1", "shop/web"} {
		lb, err := h.Find(name, "")
		require.NoError(t, err)
		require.Equal(t, "uid-1", lb.Name)
	}
	_, err := h.Find("shop/other", "")
	require.ErrorContains(t, err, "the tenant's CCM has not written it")
	other := h.LoadBalancers[0].DeepCopy()
	other.Namespace, other.Name = "tenant-b", "uid-2"
	h.LoadBalancers = append(h.LoadBalancers, *other)
	_, err = h.Find("shop/web", "")
	require.ErrorContains(t, err, "tenant-a/uid-1, tenant-b/uid-2")
	lb, err := h.Find("shop/web", "b")
	require.NoError(t, err)
	require.Equal(t, "uid-2", lb.Name)
}

func TestATraceShowsTheEndpointsOfAPacketOrWhereItEnds(t *testing.T) {
	traced := func(change func(*Snapshot), to string, protocol model.Protocol) string {
		h := healthy()
		lb := &h.LoadBalancers[0]
		lb.Spec.Type, lb.Spec.Ports = corev1.ServiceTypeLoadBalancer, []v1alpha1.LoadBalancerPort{{Port: 80}}
		lb.Spec.Endpoints[0].Ports = []v1alpha1.EndpointPort{{Port: 30080}}
		h.Pools[0].Spec.Addresses = []string{"203.0.113.0/28"}
		h.Gateways[0].Status.Elects, h.Gateways[0].Status.Candidates = true, []string{"g1"}
		change(h)
		var text strings.Builder
		require.NoError(t, h.Trace(netip.MustParseAddrPort(to), protocol).Text(&text))
		return text.String()
	}
	none := func(*Snapshot) {}
	const held = "address     203.0.113.1, of AddressPool public\nheld by     loadbalancer tenant-a/uid-1 (Service shop/web)\n"
	const answered = held + "gateway     g1, of g1\n"
	const served = answered + "frontend    TCP port 80 of loadbalancer tenant-a/uid-1 (Service shop/web), forwarding nat\nendpoints   port 30080 of 198.51.100.11, if healthy\n"
	second := func(elects bool) func(*Snapshot) {
		return func(h *Snapshot) {
			g := h.Gateways[0].DeepCopy()
			g.Name = "g2"
			h.Gateways, h.Leases["g2"] = append(h.Gateways, *g), h.Leases["g1"]
			for i := range h.Gateways {
				h.Gateways[i].Status.Elects, h.Gateways[i].Status.Candidates = elects, []string{"g1", "g2"}
			}
		}
	}
	for name, c := range map[string]struct{ got, want string }{
		"served":         {traced(none, "203.0.113.1:80", model.TCP), served},
		"another port":   {traced(none, "203.0.113.1:81", model.TCP), answered + "ends        the packet is refused: no LoadBalancer with the address serves TCP port 81"},
		"UDP":            {traced(none, "203.0.113.1:80", model.UDP), answered + "ends        the packet is refused: no LoadBalancer with the address serves UDP port 80"},
		"a free address": {traced(none, "203.0.113.2:80", model.TCP), "address     203.0.113.2, of AddressPool public\nends        no LoadBalancer has the address, so no gateway answers for it\n"},
		"no address":     {traced(none, "198.18.0.1:80", model.TCP), "address     198.18.0.1, of AddressPool none\nends        the address is in no AddressPool"},
		"no gateway":     {traced(func(h *Snapshot) { h.Gateways = nil }, "203.0.113.1:80", model.TCP), held + "ends        no gateway answers for the address"},
		"no node":        {traced(func(h *Snapshot) { h.Addresses[0].Spec.Addresses = nil }, "203.0.113.1:80", model.TCP), answered + "frontend    TCP port 80 of loadbalancer tenant-a/uid-1 (Service shop/web), forwarding nat\nends        the packet is refused: there is no endpoint"},
		"some clients": {traced(func(h *Snapshot) { h.LoadBalancers[0].Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} }, "203.0.113.1:80", model.TCP),
			answered + "frontend    TCP port 80 of loadbalancer tenant-a/uid-1 (Service shop/web), forwarding nat\nclients     of 192.0.2.0/24 only\n"},
		"two that elect":  {traced(second(true), "203.0.113.1:80", model.TCP), held + "gateway     " + election.Winner(netip.MustParseAddr("203.0.113.1"), []string{"g1", "g2"}, nil) + ", of g1, g2\n"},
		"two that do not": {traced(second(false), "203.0.113.1:80", model.TCP), held + "gateway     g1, g2, of g1, g2\n"},
		"one that announces to nobody": {traced(func(h *Snapshot) {
			h.Gateways[0].Status.Silent = []v1alpha1.GatewaySilence{{Family: corev1.IPv4Protocol, Message: "no interface is up"}}
		}, "203.0.113.1:80", model.TCP), held + "ends        gateway g1 should answer for the address, but does not: no interface is up\n"},
		"two of which one announces to nobody": {traced(func(h *Snapshot) {
			second(false)(h)
			h.Gateways[0].Status.Silent = []v1alpha1.GatewaySilence{{Family: corev1.IPv4Protocol, Message: "BGPPeer tor: connection refused"}}
		}, "203.0.113.1:80", model.TCP), held + "gateway     g2, of g2\n"},
		"two of which one has crashed": {traced(func(h *Snapshot) {
			second(false)(h)
			renewed := metav1.NewMicroTime(now.Add(-time.Hour))
			h.Leases["g1"] = coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
		}, "203.0.113.1:80", model.TCP), held + "gateway     g2, of g2\n"},
		"one that is not chosen": {traced(func(h *Snapshot) {
			second(true)(h)
			h.Gateways[1].Labels = map[string]string{"site": "two"}
			h.Pools[0].Spec.GatewaySelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "two"}}
		}, "203.0.113.1:80", model.TCP), held + "gateway     g2, of g2\n"},
	} {
		require.True(t, strings.HasPrefix(c.got, c.want), "%s:\n%s", name, c.got)
	}
}

func TestPoolsShowTheOwnersOfTheirAddresses(t *testing.T) {
	h := healthy()
	byName := false
	h.Pools[0].Spec.Addresses = []string{"203.0.113.0/28"}
	h.Pools = append(h.Pools, v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"203.0.113.16/30"}, AutoAssign: &byName, Priority: 7,
		Tenants: []string{"b"}, GatewaySelector: &metav1.LabelSelector{MatchLabels: map[string]string{"site": "two"}}}})
	sharing := h.LoadBalancers[0].DeepCopy()
	sharing.Name, sharing.Labels = "uid-2", nil
	sharing.Status.Addresses = append(sharing.Status.Addresses, v1alpha1.AllocatedAddress{Address: "203.0.113.17", Pool: "kept"})
	h.LoadBalancers = append(h.LoadBalancers, *sharing)
	text := func(names ...string) string {
		pools, err := h.PoolsNamed(names...)
		require.NoError(t, err)
		var out strings.Builder
		require.NoError(t, PoolsText(&out, pools, len(names) > 0))
		return out.String()
	}
	const heading = "POOL    STATE    USED4  FREE4  USED6  FREE6  PRIORITY  GIVEN    TENANTS  GATEWAYS  ADDRESSES\n"
	require.Equal(t, heading+
		"public  Ready    1      13     0      -      0         unasked  all      g1        203.0.113.0/28\n"+
		"kept    Unknown  0      -      0      -      7         by name  b        none      203.0.113.16/30\n", text())
	require.Contains(t, text("public"), "\nADDRESS      HELD BY\n203.0.113.1  loadbalancer tenant-a/uid-1 (Service shop/web), loadbalancer tenant-a/uid-2\n")
	require.NotContains(t, text("public"), "203.0.113.17")
	h.Pools[0].Status.Reserved = []v1alpha1.ReservedAddress{{Address: "203.0.113.9", Tenant: "b", Until: metav1.NewTime(now.Add(time.Minute))},
		{Address: "203.0.113.10", Tenant: "b", Until: metav1.NewTime(now.Add(-time.Minute))}}
	require.Contains(t, text("public"), "\n203.0.113.9  reserved for tenant b until 2027-01-15T08:01:00Z\n")
	require.NotContains(t, text("public"), "203.0.113.10", "the reservation has expired")
	lease := h.Leases["g1"]
	h.Leases = nil
	require.Regexp(t, `unasked +all +g1\(Unknown\) +203.0.113.0/28`, text("public"), "a gateway without a Lease is unknown")
	pools, err := h.PoolsNamed("public")
	require.NoError(t, err)
	require.Empty(t, pools[0].Gateways)
	require.Equal(t, []PoolGateway{{"g1", "Unknown"}}, pools[0].OtherGateways)
	h.Leases = map[string]coordinationv1.Lease{"g1": lease}
	h.Gateways[0].Status.Conditions[0] = is(v1alpha1.ConditionReady, metav1.ConditionFalse, "BackendFailed", "no nf_tables")
	require.Regexp(t, `unasked +all +g1\(BackendFailed\) +203.0.113.0/28`, text("public"))
	h.Now = now.Add(30 * time.Second)
	require.Regexp(t, `unasked +all +none +203.0.113.0/28`, text("public"), "the gateway is gone")
	_, err = h.PoolsNamed("public", "none")
	require.ErrorContains(t, err, "there is no AddressPool none: 'kubelb pools' lists them")
}

func TestControlCharactersOfTenantsAreEscaped(t *testing.T) {
	const written = "no\x1b]0;title\a\u009b31m\nno problems"
	const shown = `no\u001b]0;title\u0007\u009b31m\u000ano problems`
	h := healthy()
	h.LoadBalancers[0].Spec.Endpoints[0].AddressesReference.Name = written
	h.set(v1alpha1.ConditionAccepted, "AddressesNotFound", "Addresses tenant-a/"+written+" does not exist")
	var out strings.Builder
	require.NoError(t, h.Explain(&h.LoadBalancers[0]).Text(&out))
	require.Contains(t, out.String(), "AddressesNotFound: Addresses tenant-a/"+shown+" does not exist\n")
	out.Reset()
	require.NoError(t, h.Status().Text(&out))
	require.Contains(t, out.String(), "AddressesNotFound: Addresses tenant-a/"+shown+" does not exist\n")
	h = healthy()
	h.LoadBalancers[0].Spec.Endpoints[0].AddressesReference.Name = written
	out.Reset()
	require.NoError(t, h.Explain(&h.LoadBalancers[0]).Text(&out))
	require.Contains(t, out.String(), "there is no Addresses object tenant-a/"+shown+":")
}

// The status of a gateway that is gone is out of date.
func TestTheStatusOfAGatewayThatIsGoneIsNotShown(t *testing.T) {
	h := healthy()
	g := &h.Gateways[0]
	g.Status.BGPSessions = []v1alpha1.BGPSession{{Peer: "tor", State: v1alpha1.BGPEstablished}}
	g.Status.Conditions = append(g.Status.Conditions, is(v1alpha1.ConditionBGPEstablished, metav1.ConditionTrue, "Established", ""))
	g.Status.Failures, g.Status.Unlisted = []v1alpha1.GatewayFailure{{Record: "frontend", Message: "not supported"}}, []string{"tenant-b"}
	page := func() string {
		var page strings.Builder
		require.NoError(t, h.Status().Text(&page))
		return page.String()
	}
	require.Regexp(t, `(?m)^g1 +Ready +nftables +1 +1 +1 of 1$`, page())
	require.Contains(t, page(), "not supported")
	h.Now = now.Add(time.Hour)
	require.Regexp(t, `(?m)^g1 +Gone +nftables +- +- +-$`, page())
	require.NotContains(t, page(), "not supported")
	require.NotContains(t, page(), "tenant-b")
	seconds, lease := int32(600), h.Leases["g1"]
	lease.Spec.LeaseDurationSeconds = &seconds
	h.Leases["g1"], h.Now = lease, now.Add(5*time.Minute)
	require.Regexp(t, `(?m)^g1 +Ready `, page(), "its Lease lasts for ten minutes, and is renewed every two")
}

// The status of a gateway that cannot write its object, or has no Lease, is out of date.
func TestTheStatusOfAGatewayInStateUnknownIsNotShown(t *testing.T) {
	conditions := []metav1.Condition{
		is(v1alpha1.ConditionReady, metav1.ConditionTrue, "InSync", ""), is("HostSysctls", metav1.ConditionFalse, "Missing", "net.ipv4.ip_forward is 0"),
		is(v1alpha1.ConditionServed, metav1.ConditionFalse, v1alpha1.ReasonSegmentSilent, "no host answers"), is(v1alpha1.ConditionHeartbeatsRefused, metav1.ConditionTrue, "NotBelieved", "g2"),
		is(v1alpha1.ConditionAddressConflict, metav1.ConditionTrue, "AnotherHostAnswers", "203.0.113.1"), is(v1alpha1.ConditionBGPEstablished, metav1.ConditionFalse, "SessionDown", "tor"),
	}
	for name, silence := range map[string]func(*Snapshot){
		"without a Lease": func(h *Snapshot) { h.Leases = nil },
		"that cannot write": func(h *Snapshot) {
			lease := h.Leases["g1"]
			lease.Annotations = map[string]string{"kubelb.k8c.io/unwritten": "forbidden"}
			h.Leases["g1"] = lease
		},
		"that has just returned": func(h *Snapshot) { h.Gateways[0].Status.Conditions[0].Reason = v1alpha1.ReasonNotHeard },
	} {
		t.Run(name, func(t *testing.T) {
			h := healthy()
			status := &h.Gateways[0].Status
			status.Conditions, status.Tries = slices.Clone(conditions), &v1alpha1.GatewayTries{Problem: "no kubelb-watch"}
			status.BGPSessions = []v1alpha1.BGPSession{{Peer: "tor", State: v1alpha1.BGPEstablished}}
			status.Failures, status.Unlisted = []v1alpha1.GatewayFailure{{Record: "frontend", Message: "not supported"}}, []string{"tenant-b"}
			require.Len(t, h.Status().Problems, 8, "all problems are shown while the gateway is heard")
			silence(h)
			s := h.Status()
			var page strings.Builder
			require.NoError(t, s.Text(&page))
			require.Regexp(t, `(?m)^g1 +Unknown +nftables +- +- +-$`, page.String())
			require.Len(t, s.Problems, 2, "no gateway works, and the reason why it is unknown: %v", s.Problems)
			require.Nil(t, s.Gateways[0].Frontends)
			require.Nil(t, s.Gateways[0].Addresses)
		})
	}
}

func TestLoadBalancersWithoutATenantAreAnErrorOfTheirNamespace(t *testing.T) {
	h := healthy()
	for i, namespace := range []string{"tenant-x", "tenant-x", "tenant-x", "tenant-x", "tenant-x", "tenant-x", "default"} {
		lb := v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("uid-%d", i+10)}}
		if i == 0 {
			lb.Labels = h.LoadBalancers[0].Labels
		}
		h.LoadBalancers = append(h.LoadBalancers, lb)
	}
	s := h.Status()
	require.True(t, s.Broken())
	require.Equal(t, []Problem{
		{Error, "namespace default", "1 LoadBalancers belong to no Tenant, so no gateway serves them: delete them, because the namespace belongs to no tenant (uid-16)"},
		{Error, "namespace tenant-x", "6 LoadBalancers belong to no Tenant, so no gateway serves them: create Tenant x, or delete them (uid-10 (Service shop/web), uid-11, uid-12, uid-13, uid-14, and 1 more)"},
	}, s.Problems)
}
