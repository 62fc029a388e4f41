package model

import (
	"encoding/json"
	"testing"
	"time"
)

func TestNamesRoundTrip(t *testing.T) {
	type names struct {
		Protocol   Protocol
		State      EndpointState
		Forwarding Forwarding
	}
	for _, want := range []names{{TCP, Active, NAT}, {UDP, Draining, Transparent}, {UDP, Unhealthy, Direct}} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got names
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Errorf("%s is read as %+v: %v", text, got, err)
		}
	}
	for _, text := range []string{`{"Protocol":"SCTP"}`, `{"Protocol":""}`, `{"State":"asleep"}`, `{"Forwarding":"teleport"}`} {
		var got names
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s is read as %+v", text, got)
		}
	}
}

func TestAnInvalidValueHasItsNumberAsItsName(t *testing.T) {
	for want, got := range map[string]string{"protocol-132": Protocol(132).String(), "state-9": EndpointState(9).String(), "forwarding-7": Forwarding(7).String()} {
		if got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

func TestAnEmptyProtocolIsTCPInServicesOnly(t *testing.T) {
	for text, want := range map[string]Protocol{"": TCP, "TCP": TCP, "UDP": UDP} {
		if got, ok := ParseProtocol(text); !ok || got != want {
			t.Errorf("%q is read as %s, %v", text, got, ok)
		}
	}
	for _, text := range []string{"SCTP", "tcp", " TCP", "6"} {
		if got, ok := ParseProtocol(text); ok {
			t.Errorf("%q is read as %s", text, got)
		}
	}
}

func TestAnErrorOfANameListsTheValidNames(t *testing.T) {
	for want, err := range map[string]error{
		`protocol "sctp" is neither TCP nor UDP`:                        new(Protocol).UnmarshalText([]byte("sctp")),
		`state "asleep" is none of active, draining, unhealthy`:         new(EndpointState).UnmarshalText([]byte("asleep")),
		`forwarding "teleport" is none of nat, transparent, direct`:     new(Forwarding).UnmarshalText([]byte("teleport")),
		`forwarding "forwarding-7" is none of nat, transparent, direct`: new(Forwarding).UnmarshalText([]byte("forwarding-7")),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
}

func TestAPoolsTenantIsTheBeginningOfItsName(t *testing.T) {
	for id, want := range map[PoolID]string{"a/default.v4": "a", "a/web/extra": "a", "a": "a", "": ""} {
		if got := id.Tenant(); got != want {
			t.Errorf("%q belongs to %q, not %q", id, got, want)
		}
	}
}

func TestAFrontendsJSONHasTimesInSecondsAndNoDefaults(t *testing.T) {
	f := snapshot().Frontends[0]
	want := `{"vip":"203.0.113.1","protocol":"UDP","port":53,"owner":{"namespace":"tenant-a","name":"dns"},"tenant":"a","pool":"a/none","targetPort":30053,"forwarding":"nat"}`
	if got, err := json.Marshal(f); err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	f.AffinityTimeout, f.IdleTimeout = 90*time.Second, 10*time.Minute
	var read map[string]any
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &read); err != nil || read["affinitySeconds"] != 90.0 || read["idleSeconds"] != 600.0 {
		t.Errorf("%s: %v", text, err)
	}
}
