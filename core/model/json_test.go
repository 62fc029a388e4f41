package model

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// records makes random records, so that each field has many values, also its zero value and its limits.
type records struct{ *rand.Rand }

// maybe returns the value or the zero value.
func maybe[T any](r records, value T) T {
	if r.IntN(3) == 0 {
		return *new(T)
	}
	return value
}

func oneOf[T any](r records, values ...T) T { return values[r.IntN(len(values))] }

func (r records) address(v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{203, 0, byte(r.IntN(256)), byte(r.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(r.IntN(256)), 15: byte(r.IntN(256))})
}

// name has characters that JSON and HTML escape, and letters of other scripts.
func (r records) name() string {
	var b strings.Builder
	for range 1 + r.IntN(20) {
		b.WriteString(oneOf(r, "a", "Z", "7", "-", ".", "/", `"`, `\`, "<", "&", " ", "\n", "\u2028", "ä", "語"))
	}
	return b.String()
}

func (r records) duration() time.Duration {
	return oneOf(r, 0, 1, -1, time.Duration(r.Int64N(math.MaxInt64)), time.Duration(r.Int64N(86400))*time.Second, time.Duration(r.Int64N(1e10)), -time.Duration(r.Int64N(1e10)),
		time.Millisecond, time.Hour, math.MaxInt64)
}

func (r records) pool() Pool {
	p := Pool{ID: PoolID(r.name()), Tenant: maybe(r, r.name())}
	v4 := r.IntN(2) == 0
	for range r.IntN(5) {
		p.Endpoints = append(p.Endpoints, Endpoint{ID: r.name(), Address: r.address(v4), Weight: uint16(r.IntN(1 << 16)), State: oneOf(r, Active, Draining, Unhealthy)})
	}
	return p
}

func (r records) key() FrontendKey {
	return FrontendKey{VIP: r.address(r.IntN(2) == 0), Protocol: oneOf(r, TCP, UDP), Port: uint16(r.IntN(1 << 16))}
}

func (r records) frontend() Frontend {
	f := Frontend{FrontendKey: r.key(), Owner: ObjectName{maybe(r, r.name()), r.name()}, Tenant: r.name(), Pool: PoolID(r.name()), TargetPort: uint16(r.IntN(1 << 16)),
		Forwarding: oneOf(r, NAT, Transparent, Direct), AffinityTimeout: maybe(r, r.duration()), Restricted: r.IntN(2) == 0, IdleTimeout: maybe(r, r.duration()),
		ProxyProtocol: r.IntN(2) == 0, MaxConnections: maybe(r, r.Uint32()), MaxNewPerSecond: maybe(r, r.Uint32()),
		Redirect: maybe(r, Redirect{r.address(r.IntN(2) == 0), uint8(r.IntN(256))})}
	for range r.IntN(4) {
		a := r.address(f.VIP.Is4())
		f.SourceRanges = append(f.SourceRanges, netip.PrefixFrom(a, r.IntN(1+a.BitLen())).Masked())
	}
	return f
}

func (r records) snapshot() (s Snapshot) {
	for range r.IntN(4) {
		s.Pools = append(s.Pools, r.pool())
	}
	for range r.IntN(4) {
		s.Frontends = append(s.Frontends, r.frontend())
	}
	return s
}

// requireRead fails if the JSON of the value is not read as the value.
func requireRead[T any](t *testing.T, value T) {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatalf("%+v: %v", value, err)
	}
	var read T
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if !reflect.DeepEqual(read, value) {
		t.Fatalf("%s\nis read as %+v\nnot as     %+v", text, read, value)
	}
}

func TestJSONOfEachTypeIsReadAsItWasWritten(t *testing.T) {
	r := records{rand.New(rand.NewPCG(1, 2))}
	for range 1000 {
		s := r.snapshot()
		requireRead(t, s)
		for _, p := range s.Pools {
			requireRead(t, p)
		}
		for _, f := range s.Frontends {
			requireRead(t, f)
			requireRead(t, &f)
			requireRead(t, f.FrontendKey)
			requireRead(t, f.Redirect)
			requireRead(t, f.Owner)
			requireRead(t, map[string]Frontend{"nested": f})
		}
		requireRead(t, s.Digests())
		requireRead(t, Difference(s.Digests(), r.snapshot()))
	}
}

// The text form has all that affects forwarding, so a program that reads JSON computes the same digests.
func TestARecordFromJSONHasTheSameDigest(t *testing.T) {
	r := records{rand.New(rand.NewPCG(3, 4))}
	for range 1000 {
		s := r.snapshot()
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var read Snapshot
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(read.Digests(), s.Digests()) {
			t.Fatalf("%s\nis read as\n%s", s.Text(), read.Text())
		}
	}
}

func TestTimesInJSONAreSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "90": 90 * time.Second, "90.0": 90 * time.Second, "0.5": 500 * time.Millisecond, "0.000000001": 1, "-0.25": -250 * time.Millisecond,
		"9223372036.854775807": math.MaxInt64} {
		var f Frontend
		if err := json.Unmarshal([]byte(`{"idleSeconds":`+text+`}`), &f); err != nil || f.IdleTimeout != want {
			t.Errorf("%s is read as %s: %v", text, f.IdleTimeout, err)
		}
	}
	for _, text := range []string{`"90s"`, `"90"`, "1e3", "9223372037", "true", "[]"} {
		var f Frontend
		if err := json.Unmarshal([]byte(`{"affinitySeconds":`+text+`}`), &f); err == nil {
			t.Errorf("%s is read as %s", text, f.AffinityTimeout)
		}
	}
}

func TestFieldsThatJSONDoesNotHaveStay(t *testing.T) {
	f := Frontend{TargetPort: 80, IdleTimeout: time.Minute, Restricted: true}
	if err := json.Unmarshal([]byte(`{"targetPort":81,"affinitySeconds":5}`), &f); err != nil {
		t.Fatal(err)
	}
	if want := (Frontend{TargetPort: 81, IdleTimeout: time.Minute, AffinityTimeout: 5 * time.Second, Restricted: true}); !f.Equal(want) {
		t.Errorf("%+v", f)
	}
}

func TestAnInvalidValueIsNotWritten(t *testing.T) {
	for want, value := range map[string]any{
		"protocol-132 is none of [TCP UDP]":                FrontendKey{Protocol: 132},
		"state-3 is none of [active draining unhealthy]":   Pool{Endpoints: []Endpoint{{State: 3}}},
		"forwarding-3 is none of [nat transparent direct]": Frontend{FrontendKey: FrontendKey{Protocol: TCP}, Forwarding: 3},
		"protocol-0 is none of [TCP UDP]":                  Digests{Frontends: map[FrontendKey]Digest{{}: "x"}},
	} {
		if text, err := json.Marshal(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, %v, not %s", text, err, want)
		}
	}
}
