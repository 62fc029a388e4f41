package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
)

func TestATextThatIsNoNameOfAnAddressPoolHasTheReason(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "public": "", "Public_1.a-b": "", "0": "", strings.Repeat("a", MaxNameLength): "",
		strings.Repeat("a", MaxNameLength+1): "more than 253 characters",
		"-public":                            `"-public" is not a name of an AddressPool`,
		"public-":                            "use letters and digits, and - _ . between them",
		"two pools":                          `"two pools" is not a name`,
		"pool/public":                        "is not a name",
		"pül":                                "is not a name",
	} {
		if got := ValidatePoolName(text); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestASharingKeyHasCharactersThatATerminalShows(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "web and dns": "", "schlüssel": "", strings.Repeat("ü", MaxNameLength): "",
		strings.Repeat("ü", MaxNameLength+1): "more than 253 characters",
		"one\ntwo":                           `"one\ntwo" has control characters: remove them`,
		"\x1b[2J":                            "control characters",
		"\u0085":                             "control characters",
	} {
		if got := ValidateSharingKey(text); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestAServiceWithAnInvalidAnnotationHasAProblemThatNamesIt(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Service)
		reason  string
		field   string
		message string
	}{
		"a pool":        {func(s *Service) { s.AddressPool = "two pools" }, ReasonInvalidAnnotation, AnnotationAddressPool, `"two pools" is not a name of an AddressPool`},
		"a sharing key": {func(s *Service) { s.SharingKey = "a\tb" }, ReasonInvalidAnnotation, AnnotationSharingKey, "has control characters: remove them"},
		"a network": {func(s *Service) { s.SourceRangeAnnotation = "192.0.2.0/24, office, ::ffff:192.0.2.0/120" }, ReasonInvalidSourceRange, annotationSourceRanges,
			`has "office", "::ffff:192.0.2.0/120", which are not networks: use CIDRs such as 192.0.2.0/24, separated by commas`},
		"networks": {func(s *Service) {
			s.SourceRangeAnnotation = strings.Repeat("192.0.2.0/24,", MaxSourceRanges) + "192.0.2.0/24"
		}, ReasonTooManySourceRanges, annotationSourceRanges,
			"has 129 networks: use 128 at most"},
		"addresses": {func(s *Service) { s.RequestedAnnotation = "203.0.113.1,203.0.113.2" }, ReasonInvalidAddress, AnnotationRequestedAddresses,
			"has more than one address of a family: name one, or one of each family"},
		"a mapped address": {func(s *Service) { s.RequestedAnnotation = "::ffff:203.0.113.1" }, ReasonInvalidAddress, AnnotationRequestedAddresses, "is not an IP address"},
		"forwarding":       {func(s *Service) { s.Forwarding = "diretc" }, ReasonInvalidForwarding, AnnotationForwarding, `is "diretc": use one of nat, transparent, direct`},
		"PROXY protocol":   {func(s *Service) { s.ProxyProtocol = "v1" }, ReasonInvalidProxyProtocol, AnnotationProxyProtocol, `is "v1": use v2, or remove it`},
		"an idle timeout":  {func(s *Service) { s.IdleTimeout = "soon" }, ReasonInvalidIdleTimeout, AnnotationIdleTimeout, `"soon"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := Service{Namespace: "shop", Name: "web", UID: "uid-1", Type: "LoadBalancer", Ports: []ServicePort{{Port: 80, NodePort: 30080}}}
			c.change(&s)
			_, problems := DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a")
			if len(problems) != 1 {
				t.Fatalf("%+v", problems)
			}
			p := problems[0]
			if p.Reason != c.reason || p.Field != "metadata.annotations."+c.field || !strings.Contains(p.Message, p.Field) || !strings.Contains(p.Message, c.message) {
				t.Errorf("%+v", p)
			}
			if _, refused := Refused(problems); !refused {
				t.Error("the Service would be served without what it asks for")
			}
		})
	}
}

func TestNetworksInTheFieldBeatThoseInTheAnnotation(t *testing.T) {
	s := Service{UID: "uid-1", SourceRanges: []string{" 192.0.2.0/24"}, SourceRangeAnnotation: "office", Ports: []ServicePort{{Port: 80, NodePort: 30080}}}
	lb, problems := DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a")
	if !slices.Equal(lb.SourceRanges, []string{"192.0.2.0/24"}) || len(problems) > 0 {
		t.Errorf("%v, %+v", lb.SourceRanges, problems)
	}
	s.SourceRanges = slices.Repeat([]string{"192.0.2.0/24"}, MaxSourceRanges+1)
	if _, problems = DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a"); len(problems) != 1 || problems[0].Field != "spec.loadBalancerSourceRanges" {
		t.Errorf("%+v", problems)
	}
}

func TestAHeadlessServiceHasNothingToForwardTo(t *testing.T) {
	_, problems := DesiredLoadBalancer(Service{UID: "uid-1", Headless: true, Forwarding: "diretc"}, nil, nil, "InternalIP", "tenant-a")
	if len(problems) != 1 || problems[0].Reason != ReasonHeadless || problems[0].Field != "spec.clusterIP" || problems[0].Partial {
		t.Errorf("%+v", problems)
	}
}

func TestAServiceWithMorePortsThanAGatewayTakesHasAProblem(t *testing.T) {
	s := Service{UID: "uid-1"}
	for i := range MaxPorts + 1 {
		s.Ports = append(s.Ports, ServicePort{Port: int32(1 + i), NodePort: 30080})
	}
	_, problems := DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a")
	if len(problems) != 1 || problems[0].Message != "spec.ports has 257 ports: use 256 at most, and another Service for the others" {
		t.Errorf("%+v", problems)
	}
	s.Ports = s.Ports[1:]
	if _, problems = DesiredLoadBalancer(s, nil, nil, "InternalIP", "tenant-a"); len(problems) > 0 {
		t.Errorf("%+v", problems)
	}
}

func TestAServiceThatPrefersTwoFamiliesAsksForThoseOfItsCluster(t *testing.T) {
	for name, c := range map[string]struct {
		families []ipam.Family
		policy   ipam.Policy
		want     ipam.Policy
	}{
		"a cluster of one family":    {[]ipam.Family{ipam.IPv6}, ipam.PreferDualStack, ipam.SingleStack},
		"a cluster of both":          {[]ipam.Family{ipam.IPv6, ipam.IPv4}, ipam.PreferDualStack, ipam.PreferDualStack},
		"both are required":          {[]ipam.Family{ipam.IPv4}, ipam.RequireDualStack, ipam.RequireDualStack},
		"nothing is known of either": {nil, ipam.PreferDualStack, ipam.PreferDualStack},
	} {
		got, _ := DesiredLoadBalancer(Service{UID: "uid-1", Families: c.families, FamilyPolicy: c.policy}, nil, nil, "InternalIP", "tenant-a")
		if got.FamilyPolicy != c.want || !slices.Equal(got.Families, c.families) {
			t.Errorf("%s: %s of %v", name, got.FamilyPolicy, got.Families)
		}
	}
}

func TestTheHubServesNothingOfATenantThatIsDisabledOrDeleted(t *testing.T) {
	for name, c := range map[string]struct {
		change          func(*Translator, *LoadBalancer)
		reason, message string
	}{
		"a deleted tenant": {func(h *Translator, _ *LoadBalancer) { h.SetTenant(Tenant{Name: "a", Deleting: true, Disabled: true}) }, ReasonTenantDeleted,
			"is deleting Tenant a: none of its Services is served any more, and their addresses may go to other tenants"},
		"a disabled tenant": {func(h *Translator, _ *LoadBalancer) { h.SetTenant(Tenant{Name: "a", Disabled: true}) }, ReasonTenantDisabled, "Tenant a is disabled by the management cluster's operator"},
		"no tenant":         {func(_ *Translator, l *LoadBalancer) { l.Namespace = "tenant-x" }, ReasonTenantNotFound, "no Tenant owns namespace tenant-x: create the Tenant x"},
		"another type":      {func(_ *Translator, l *LoadBalancer) { l.Type = "ClusterIP" }, ReasonNotLoadBalancer, `spec.type is "ClusterIP": only LoadBalancer gets an external address`},
		"an address": {func(_ *Translator, l *LoadBalancer) { l.VIPs = []netip.Addr{{}} }, ReasonInvalidAddress,
			"status.addresses[0] is invalid IP: only plain IPv4 and IPv6 addresses can be served"},
		"a family policy": {func(_ *Translator, l *LoadBalancer) { l.FamilyPolicy = "Both" }, ReasonInvalidFamilyPolicy,
			`spec.ipFamilyPolicy is "Both": use one of SingleStack, PreferDualStack, RequireDualStack`},
		"forwarding":     {func(_ *Translator, l *LoadBalancer) { l.Forwarding = "fast" }, ReasonInvalidForwarding, `spec.forwarding is "fast": use one of nat, transparent, direct`},
		"PROXY protocol": {func(_ *Translator, l *LoadBalancer) { l.ProxyProtocol = "v1" }, ReasonInvalidProxyProtocol, `spec.proxyProtocol is "v1": use v2, or remove it`},
	} {
		t.Run(name, func(t *testing.T) {
			h, l := testHub(), lb("tenant-a", "web")
			h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
			c.change(h, &l)
			h.SetLoadBalancer(l)
			if got := snapshot(t, h); strings.Contains(got, "frontend") {
				t.Errorf("it is served:\n%s", got)
			}
			problem, refused := Refused(h.Problems(l.ObjectName))
			if !refused || problem.Reason != c.reason || !strings.Contains(problem.Message, c.message) {
				t.Errorf("%+v", problem)
			}
		})
	}
}

func TestAnAddressThatIsOnRecordTwiceIsServedOnce(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.11"))
	h.SetLoadBalancer(lb("tenant-a", "web", vips("203.0.113.1", "203.0.113.1"), func(l *LoadBalancer) { l.Forwarding = "transparent" }))
	want(t, snapshot(t, h), "pool a/default.v4 tenant=a", "  endpoint 198.51.100.11 address=198.51.100.11 weight=1 active",
		"frontend TCP 203.0.113.1:80 pool=a/default.v4 target=30080 forwarding=transparent tenant=a owner=tenant-a/web")
	if problems := h.Problems(model.ObjectName{Namespace: "tenant-a", Name: "web"}); len(problems) > 0 {
		t.Errorf("%+v", problems)
	}
}

func TestRecordsAreFoundOnceTheyAreServed(t *testing.T) {
	h := testHub()
	h.SetAddresses(addressesOf("tenant-a", "198.51.100.12", "198.51.100.11", "2001:db8:1::11"))
	h.SetLoadBalancer(lb("tenant-a", "web", vips("203.0.113.1", "2001:db8:f::1")))
	h.SetLoadBalancer(lb("tenant-a", "near", vips("203.0.113.7"), func(l *LoadBalancer) { l.Forwarding = "direct" }))
	key := model.FrontendKey{VIP: netip.MustParseAddr("203.0.113.1"), Protocol: model.TCP, Port: 80}
	if _, found := h.Frontend(key); found {
		t.Error("a frontend is there before it is flushed")
	}
	h.Flush()
	f, found := h.Frontend(key)
	owner, owned := h.Owner(key)
	pool, known := h.Pool(f.Pool)
	if !found || !owned || !known || owner != f.Owner || owner.String() != "tenant-a/web" || pool.ID != "a/default.v4" || len(pool.Endpoints) != 2 {
		t.Errorf("%+v of %s, %+v", f, owner, pool)
	}
	endpoints, direct := h.Addresses()
	if got := fmt.Sprint(endpoints, direct); got != "[198.51.100.11 198.51.100.12 2001:db8:1::11] [203.0.113.7]" {
		t.Error(got)
	}
	other := key
	other.Port = 81
	h.DeleteLoadBalancer(model.ObjectName{Namespace: "tenant-a", Name: "web"})
	h.Flush()
	for _, gone := range []model.FrontendKey{key, other} {
		_, found = h.Frontend(gone)
		if _, owned = h.Owner(gone); found || owned {
			t.Errorf("%s is still there", gone)
		}
	}
	if _, known = h.Pool("a/gone"); known {
		t.Error("it has a pool that nobody made")
	}
	if problems := h.Problems(owner); problems != nil {
		t.Errorf("a LoadBalancer that is gone has problems: %+v", problems)
	}
}

func TestOnlyANamespaceWithThePrefixIsATenants(t *testing.T) {
	for namespace, want := range map[string]string{"tenant-a": "a", "tenant-a-b": "a-b", "tenant-": "", "kube-system": "", "a": "", "": ""} {
		got, is := TenantOf(namespace)
		if is != (want != "") || is && got != want {
			t.Errorf("%q is of %q, %v", namespace, got, is)
		}
		if is && (Tenant{Name: got}).Namespace() != namespace {
			t.Errorf("%s has another namespace than %s", got, namespace)
		}
	}
}

func TestARefusedLoadBalancerKeepsItsAddressAndOneOfAnotherTypeReleasesIt(t *testing.T) {
	a := ipam.NewAllocator()
	ranges, _ := ipam.ParseRanges([]string{"203.0.113.1-203.0.113.4"}, false)
	a.SetPools([]ipam.Pool{{Name: "public", Ranges: ranges, AutoAssign: true}})
	l := lb("tenant-a", "web")
	has := func() string { return fmt.Sprint(a.AllocationsOf("tenant-a/web")) }
	if refusal := l.Allocate(a, ipam.Limits{}, true); refusal != nil || has() != "[]" {
		t.Errorf("a refused one gets %s: %v", has(), refusal)
	}
	for _, refused := range []bool{false, true} {
		if refusal := l.Allocate(a, ipam.Limits{}, refused); refusal != nil || has() != "[{203.0.113.1 public}]" {
			t.Errorf("it has %s: %v", has(), refusal)
		}
	}
	l.Type = "NodePort"
	if refusal := l.Allocate(a, ipam.Limits{}, true); refusal != nil || has() != "[]" {
		t.Errorf("it still has %s: %v", has(), refusal)
	}
}

func TestPortsBeyondTheLimitAreNotAdmittedAndTheOthersStay(t *testing.T) {
	a := ipam.NewAllocator()
	ranges, _ := ipam.ParseRanges([]string{"203.0.113.1-203.0.113.4"}, false)
	a.SetPools([]ipam.Pool{{Name: "public", Ranges: ranges, AutoAssign: true}})
	one, l := int32(1), lb("tenant-a", "web")
	if refusal := l.Allocate(a, ipam.Limits{Ports: &one}, false); refusal != nil || l.AdmittedPorts != nil {
		t.Fatalf("%v, %v", refusal, l.AdmittedPorts)
	}
	l.Ports = append(l.Ports, Port{Name: "https", Number: 443})
	refusal := l.Allocate(a, ipam.Limits{Ports: &one}, false)
	if refusal == nil || refusal.Reason != ipam.LimitReached || l.AdmittedPorts == nil || !slices.Equal(*l.AdmittedPorts, []Port{{Number: 80, Protocol: "TCP"}}) {
		t.Fatalf("%v, %v", refusal, l.AdmittedPorts)
	}
	if claim := l.Claim(); len(claim.Ports) != 1 || claim.Ports[0] != (ipam.Port{Protocol: "TCP", Number: 80}) {
		t.Errorf("it claims %+v", claim)
	}
	two := int32(2)
	if refusal := l.Allocate(a, ipam.Limits{Ports: &two}, false); refusal != nil || l.AdmittedPorts != nil || len(l.Claim().Ports) != 2 {
		t.Errorf("the limit is higher now: %v, %v", refusal, l.AdmittedPorts)
	}
}

func TestAddressesNobodyMayCoverAreNamedWithTheirHosts(t *testing.T) {
	ip := netip.MustParseAddr
	used := UsedAddresses{ip("203.0.113.9"): "a node of Tenant b", ip("203.0.113.2"): "the router", ip("192.0.2.1"): "Node n1"}
	ranges, _ := ipam.ParseRanges([]string{"203.0.113.0/28"}, false)
	named := used.In(ranges)
	if got := fmt.Sprint(named); got != "[203.0.113.2 (the router) 203.0.113.9 (a node of Tenant b)]" {
		t.Error(got)
	}
	if p := CoversUsed(named); p.Reason != ReasonCoversUsed || p.Field != "spec.addresses" || p.Partial ||
		p.Message != "spec.addresses: covers 203.0.113.2 (the router), 203.0.113.9 (a node of Tenant b): the pool gives no address, and the nodes among these stay targets, until spec.addresses leaves them out" {
		t.Errorf("%+v", p)
	}
	if p := NodesLeftOut([]string{"n1: no address", "n2: no address"}); !p.Partial || p.Message != "left out of the targets: n1: no address; n2: no address" {
		t.Errorf("%+v", p)
	}
}

func TestTargetsAreCountedByTheFamilyThatHasMoreUpToTheLimit(t *testing.T) {
	tenant := Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}}
	list := addressesOf("tenant-a", "198.51.100.11", "198.51.100.11", "198.51.100.12", "192.0.2.1", "2001:db8:1::11", "2001:db8:1::12", "2001:db8:1::13")
	list.List = append(list.List, Address{Hostname: "n1.example.com"})
	for limit, want := range map[uint32]int{0: 3, 2: 2, 1: 1, 9: 3} {
		tenant.EndpointsPerLoadBalancer = limit
		if got := CountTargets(list.List, tenant, TargetFilter{}); got != want {
			t.Errorf("%d with limit %d, want %d", got, limit, want)
		}
	}
	problems, families := CheckAddressFamilies(list, tenant, TargetFilter{})
	if fmt.Sprint(families) != "[IPv4 IPv6]" || fmt.Sprint(problems) != fmt.Sprint(CheckAddresses(list, tenant, TargetFilter{})) {
		t.Errorf("%v, %v", families, problems)
	}
	text := fmt.Sprint(problems)
	for _, part := range []string{"192.0.2.1", `"n1.example.com": the hub resolves no names; give its address in ip`} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in %s", part, text)
		}
	}
}
