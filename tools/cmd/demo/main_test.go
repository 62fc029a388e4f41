package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

func TestTheDemoPrintsCommandsForKubelb(t *testing.T) {
	host := func(name string) *netlab.Namespace { return &netlab.Namespace{Name: name} }
	var out strings.Builder
	d := demo{out: &out, kubectl: "/k/kubectl", kubelb: "/bin/kubelb", operator: host("lab-operator"), lab: &cluster.Lab{Dir: "/lab", Client: host("lab-client"), Gateway: host("lab-gateway"),
		Hub: &cluster.ControlPlane{Name: "hub", Namespace: host("lab-hub"), Kubeconfig: "/lab/hub"}, Tenant: &cluster.ControlPlane{Name: "tenant", Namespace: host("lab-tenant"), Kubeconfig: "/lab/tenant"}}}
	d.usage()
	const enter = "  nsenter --target $(pgrep -o -x demo) --mount ip netns exec lab-operator /bin/kubelb "
	for _, command := range []string{"status", "explain default/shop --tenant=a", "check default/shop --tenant=a"} {
		require.Contains(t, out.String(), enter+command+" --kubeconfig /lab/hub\n")
	}
}
