package explain

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// shop returns a tenant with one node and one Service, on a hub with one pool.
func shop() Input {
	return Input{
		Version:      Version,
		Tenants:      []translate.Tenant{{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}},
		AddressPools: []AddressPool{{Name: "public", Addresses: []string{"203.0.113.0/28"}, AutoAssign: true, AvoidNetworkAddresses: true}},
		Clusters: []Cluster{{
			Tenant:   "a",
			Nodes:    []translate.Node{{Name: "n1", Addresses: []translate.NodeAddress{{Type: "InternalIP", Address: "198.51.100.11"}}}},
			Services: []translate.Service{{Namespace: "shop", Name: "web", UID: "uid-1", Type: "LoadBalancer", Ports: []translate.ServicePort{{Port: 80, NodePort: 30080}}}},
		}},
	}
}

func Example() {
	document, err := json.Marshal(shop())
	if err != nil {
		panic(err)
	}
	var out Output
	if err := json.Unmarshal(JSON(document), &struct {
		Text *string `json:"text"`
	}{&out.Text}); err != nil {
		panic(err)
	}
	fmt.Print(out.Text)
	// Output:
	// pool a/default.v4 tenant=a
	//   endpoint 198.51.100.11 address=198.51.100.11 weight=1 active
	// frontend TCP 203.0.113.1:80 pool=a/default.v4 target=30080 tenant=a owner=tenant-a/uid-1
}

func TestInvalidInputIsAnsweredWithTheReason(t *testing.T) {
	for document, want := range map[string]string{
		``:                                   "EOF",
		`{`:                                  "unexpected EOF",
		`[]`:                                 "cannot unmarshal array",
		`{}`:                                 `version is ""`,
		`{"version":"v2"}`:                   `version is "v2": this core reads v1`,
		`{"version":"v1"} {}`:                "something follows the end",
		`{"version":"v1","servces":[]}`:      `unknown field "servces"`,
		`{"version":"v1","forbidden":["x"]}`: "netip.ParsePrefix",
		`{"version":"v1","tenants":[{"name":"a"},{"name":"a"}]}`: "Tenant /a appears twice",
	} {
		var out struct{ Version, Error string }
		if err := json.Unmarshal(JSON([]byte(document)), &out); err != nil {
			t.Fatal(err)
		}
		if out.Version != Version || !strings.Contains(out.Error, want) {
			t.Errorf("%s: answered %+v, want %q", document, out, want)
		}
	}
}

func TestHealthReachesTheModel(t *testing.T) {
	in := shop()
	in.Clusters[0].Nodes = append(in.Clusters[0].Nodes, translate.Node{Name: "n2", Addresses: []translate.NodeAddress{{Type: "InternalIP", Address: "198.51.100.12"}}})
	in.Health = []Health{{Address: netip.MustParseAddr("198.51.100.12"), State: model.Unhealthy}}
	out, err := Explain(in)
	if err != nil || !strings.Contains(out.Text, "endpoint 198.51.100.12 address=198.51.100.12 weight=1 unhealthy") {
		t.Errorf("%v\n%s", err, out.Text)
	}
}

func TestProblemsNameTheObjectAndTheField(t *testing.T) {
	in := shop()
	other := "example.com/other"
	in.Clusters[0].Services = append(in.Clusters[0].Services,
		translate.Service{Namespace: "shop", Name: "foreign", UID: "uid-2", Type: "LoadBalancer", Class: &other},
		translate.Service{Namespace: "shop", Name: "sctp", UID: "uid-3", Type: "LoadBalancer", Ports: []translate.ServicePort{{Protocol: "SCTP", Port: 5000}}},
		translate.Service{Namespace: "shop", Name: "asks", UID: "uid-4", Type: "LoadBalancer", LoadBalancerIP: "192.0.2.1", Ports: []translate.ServicePort{{Port: 80, NodePort: 30081}}})
	in.AddressPools = append(in.AddressPools, AddressPool{Name: "bad", Addresses: []string{"everything"}})
	out, err := Explain(in)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range out.Problems {
		got = append(got, fmt.Sprintf("%s %s %s %s", p.Kind, p.ObjectName, p.Field, p.Reason))
	}
	want := []string{
		"Service shop/foreign spec.loadBalancerClass OtherClass",
		"Service shop/sctp spec.ports[0].protocol UnsupportedProtocol",
		"AddressPool /bad spec.addresses InvalidAddresses",
		"LoadBalancer tenant-a/uid-4  AddressNotAvailable",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("problems\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
