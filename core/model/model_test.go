package model

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Address plan: endpoints 198.51.100.11 and .12, VIP 203.0.113.1, clients 192.0.2.0/24.
func snapshot() Snapshot {
	return Snapshot{
		Pools: []Pool{
			{ID: "a/two", Tenant: "a", Endpoints: []Endpoint{
				{ID: "n2", Address: netip.MustParseAddr("198.51.100.12"), Weight: 3, State: Draining},
				{ID: "n1", Address: netip.MustParseAddr("198.51.100.11"), Weight: 1},
			}},
			{ID: "a/none", Tenant: "a"},
		},
		Frontends: []Frontend{
			{FrontendKey: FrontendKey{netip.MustParseAddr("203.0.113.1"), UDP, 53}, Owner: ObjectName{"tenant-a", "dns"}, Tenant: "a", Pool: "a/none", TargetPort: 30053},
			{FrontendKey: FrontendKey{netip.MustParseAddr("203.0.113.1"), TCP, 53}, Owner: ObjectName{"tenant-a", "dns"}, Tenant: "a", Pool: "a/two", TargetPort: 30053,
				AffinityTimeout: 90 * time.Second, Restricted: true, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("10.0.0.0/8")}},
		},
	}
}

func TestTextIsCanonical(t *testing.T) {
	want := `pool a/none tenant=a
pool a/two tenant=a
  endpoint n1 address=198.51.100.11 weight=1 active
  endpoint n2 address=198.51.100.12 weight=3 draining
frontend TCP 203.0.113.1:53 pool=a/two target=30053 affinity=1m30s sources=[10.0.0.0/8 192.0.2.128/25] tenant=a owner=tenant-a/dns
frontend UDP 203.0.113.1:53 pool=a/none target=30053 tenant=a owner=tenant-a/dns
`
	if got := snapshot().Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := snapshot().Validate(); err != nil {
		t.Error(err)
	}
}

func TestDifferenceHasTheChangedRecordsOnly(t *testing.T) {
	before := snapshot().Canonical()
	after := snapshot().Canonical()
	after.Pools[1].Endpoints[0].State = Unhealthy
	after.Frontends = after.Frontends[:1]
	after.Frontends[0].TargetPort = 30054
	after.Pools = append(after.Pools[1:], Pool{ID: "a/new", Tenant: "a"})
	d := Difference(before.Digests(), after)
	if len(d.UpsertPools) != 2 || d.UpsertPools[0].ID != "a/new" || d.UpsertPools[1].ID != "a/two" ||
		len(d.UpsertFrontends) != 1 || d.UpsertFrontends[0].Protocol != TCP ||
		len(d.DeleteFrontends) != 1 || d.DeleteFrontends[0].Protocol != UDP ||
		len(d.DeletePools) != 1 || d.DeletePools[0] != "a/none" {
		t.Errorf("got %+v", d)
	}
	if d := Difference(before.Digests(), snapshot()); !d.Empty() {
		t.Errorf("no change gives %+v", d)
	}
}

func TestEveryFieldThatAffectsForwardingChangesTheDigest(t *testing.T) {
	base := snapshot().Frontends[0]
	seen := map[Digest]string{base.Digest(): "unchanged"}
	for name, change := range map[string]func(*Frontend){
		"pool":       func(f *Frontend) { f.Pool = "a/two" },
		"target":     func(f *Frontend) { f.TargetPort++ },
		"forwarding": func(f *Frontend) { f.Forwarding = Direct },
		"affinity":   func(f *Frontend) { f.AffinityTimeout = time.Second },
		"restricted": func(f *Frontend) { f.Restricted = true },
		"idle":       func(f *Frontend) { f.IdleTimeout = time.Second },
		"proxy":      func(f *Frontend) { f.ProxyProtocol = true },
		"max":        func(f *Frontend) { f.MaxConnections = 1 },
		"rate":       func(f *Frontend) { f.MaxNewPerSecond = 1 },
		"next":       func(f *Frontend) { f.Redirect.Next = netip.MustParseAddr("192.0.2.1") },
		"asks":       func(f *Frontend) { f.Redirect.Limit = 1 },
		"tenant":     func(f *Frontend) { f.Tenant = "b" },
		"owner":      func(f *Frontend) { f.Owner.Name = "other" },
	} {
		f := base
		change(&f)
		if other, twice := seen[f.Digest()]; twice {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[f.Digest()] = name
	}
}

func TestInvalidRecordsAreErrors(t *testing.T) {
	for want, change := range map[string]func(*Snapshot){
		"pool a/two appears twice":   func(s *Snapshot) { s.Pools = append(s.Pools, s.Pools[0]) },
		"both families":              func(s *Snapshot) { s.Pools[0].Endpoints[0].Address = netip.MustParseAddr("2001:db8::1") },
		"is empty or used twice":     func(s *Snapshot) { s.Pools[0].Endpoints[0].ID = "n1" },
		"endpoint id of 101 bytes":   func(s *Snapshot) { s.Pools[0].Endpoints[1].ID = strings.Repeat("n", MaxEndpointID+1) },
		"weight 0":                   func(s *Snapshot) { s.Pools[0].Endpoints[1].Weight = 0 },
		"not a plain":                func(s *Snapshot) { s.Pools[0].Endpoints[1].Address = netip.MustParseAddr("::ffff:198.51.100.11") },
		"appears twice":              func(s *Snapshot) { s.Frontends[0].Protocol = TCP },
		"port 0":                     func(s *Snapshot) { s.Frontends[0].Port = 0 },
		"target port 0":              func(s *Snapshot) { s.Frontends[0].TargetPort = 0 },
		"pool a/gone does not exist": func(s *Snapshot) { s.Frontends[0].Pool = "a/gone" },
		"belongs to tenant a":        func(s *Snapshot) { s.Frontends[0].Tenant = "b" },
		"is of the other family": func(s *Snapshot) {
			s.Frontends[1].VIP, s.Frontends[1].SourceRanges = netip.MustParseAddr("2001:db8::1"), nil
		},
		"source ranges without":    func(s *Snapshot) { s.Frontends[1].Restricted = false },
		"unmasked or of the wrong": func(s *Snapshot) { s.Frontends[1].SourceRanges[0] = netip.MustParsePrefix("192.0.2.129/25") },
		"neither TCP nor UDP":      func(s *Snapshot) { s.Frontends[0].Protocol = 132 },
		"handover on UDP":          func(s *Snapshot) { s.Frontends[0].Redirect = Redirect{netip.MustParseAddr("192.0.2.1"), 1} },
		"handover to 2001:db8::1":  func(s *Snapshot) { s.Frontends[1].Redirect = Redirect{netip.MustParseAddr("2001:db8::1"), 1} },
		"handover to invalid IP":   func(s *Snapshot) { s.Frontends[1].Redirect = Redirect{Limit: 1} },
		"asks 0 gateways":          func(s *Snapshot) { s.Frontends[1].Redirect = Redirect{netip.MustParseAddr("192.0.2.1"), 0} },
		"asks 16 gateways": func(s *Snapshot) {
			s.Frontends[1].Redirect = Redirect{netip.MustParseAddr("192.0.2.1"), MaxRedirects + 1}
		},
		"PROXY protocol on UDP":        func(s *Snapshot) { s.Frontends[0].ProxyProtocol = true },
		"is not a number of seconds":   func(s *Snapshot) { s.Frontends[1].AffinityTimeout = 25 * time.Hour },
		"idle timeout -1s is negative": func(s *Snapshot) { s.Frontends[1].IdleTimeout = -time.Second },
		"the id is one of tenant a":    func(s *Snapshot) { s.Pools[1].Tenant = "b" },
		"pool a/none belongs to":       func(s *Snapshot) { s.Frontends[0].Tenant = "b" },
		"pool without id or tenant":    func(s *Snapshot) { s.Pools[1].Tenant = "" },
		"endpoint n1: state-3":         func(s *Snapshot) { s.Pools[0].Endpoints[1].State = Unhealthy + 1 },
		"forwarding-3":                 func(s *Snapshot) { s.Frontends[0].Forwarding = Direct + 1 },
		"VIP is not a plain":           func(s *Snapshot) { s.Frontends[0].VIP = netip.Addr{} },
		"no pool or no tenant":         func(s *Snapshot) { s.Frontends[0].Pool = "" },
		"forwarding direct, which": func(s *Snapshot) {
			s.Frontends[1].Forwarding, s.Frontends[1].Redirect = Direct, Redirect{netip.MustParseAddr("192.0.2.1"), 1}
		},
	} {
		s := snapshot()
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestOnlyTheTextOfADigestIsParsed(t *testing.T) {
	valid := Pool{ID: "a/p", Tenant: "a"}.Digest()
	if got := ParseDigest(string(valid)); got != valid {
		t.Errorf("got %q of %q", got, valid)
	}
	for _, text := range []string{"", string(valid[1:]), string(valid) + "0", string(valid[1:]) + "g", string(valid[1:]) + "A", string(valid[1:]) + "\x00"} {
		if got := ParseDigest(text); got != "" {
			t.Errorf("got %q of %q", got, text)
		}
	}
}

func TestAllThatIsInvalidIsNamedAtOnce(t *testing.T) {
	s := snapshot()
	s.Pools[0].Endpoints[0].Weight, s.Pools[0].Endpoints[1].ID = 0, ""
	s.Frontends[0].Port, s.Frontends[0].TargetPort = 0, 0
	err := s.Validate()
	if err == nil {
		t.Fatal("it is valid")
	}
	for _, want := range []string{"pool a/two: ", "endpoint n2: weight 0", `endpoint id "" is empty`, "frontend UDP 203.0.113.1:0: port 0", "target port 0"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}
