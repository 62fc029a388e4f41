package model

import (
	"encoding/json"
	"testing"
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
