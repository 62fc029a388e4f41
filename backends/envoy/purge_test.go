package envoy

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

func TestOnlyFlowsBetweenClientsAndEnvoyAreDeleted(t *testing.T) {
	vip, client, node, gateway := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("198.51.100.11"), netip.MustParseAddr("198.51.100.1")
	f := frontend(model.UDP, vip.String(), 53, "a/p")
	frontends := map[model.FrontendKey]model.Frontend{f.FrontendKey: f}
	for name, test := range map[string]struct {
		flow hostflows.Flow
		ours bool
	}{
		"from a client":             {hostflows.Flow{Protocol: model.UDP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 53, Endpoint: vip, EndpointPort: 53, ReplyTo: client}, true},
		"begun by an answer":        {hostflows.Flow{Protocol: model.UDP, Client: vip, ClientPort: 53, VIP: client, VIPPort: 4000, Endpoint: client, EndpointPort: 4000, ReplyTo: vip}, true},
		"of another port":           {hostflows.Flow{Protocol: model.UDP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 54, Endpoint: vip, EndpointPort: 54, ReplyTo: client}, false},
		"of TCP":                    {hostflows.Flow{Protocol: model.TCP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 53, Endpoint: vip, EndpointPort: 53, ReplyTo: client}, false},
		"that is rewritten":         {hostflows.Flow{Protocol: model.UDP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 53, Endpoint: node, EndpointPort: 30053, ReplyTo: gateway}, false},
		"that is transparent":       {hostflows.Flow{Protocol: model.UDP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 53, Endpoint: node, EndpointPort: 30053, ReplyTo: client}, false},
		"whose source is rewritten": {hostflows.Flow{Protocol: model.UDP, Client: client, ClientPort: 4000, VIP: vip, VIPPort: 53, Endpoint: vip, EndpointPort: 53, ReplyTo: gateway}, false},
	} {
		require.Equal(t, test.ours, isOwn(frontends, &test.flow), name)
	}
}
