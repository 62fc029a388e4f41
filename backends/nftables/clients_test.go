package nftables

import (
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/stretchr/testify/require"
)

// described returns the layout of a table that is not created.
func described(f family) layout {
	return layout{family: f, protocols: func() *nft.Set { return &nft.Set{} }}
}

// If the map is full, the kernel ends the rule that stores the client, and continues with the next rule. All tenants' clients are in one map.
func TestAClientIsForwardedEvenIfTheMapOfClientsIsFull(t *testing.T) {
	for _, f := range families {
		l := described(f)
		for _, set := range l.sets() {
			if set.name == mapClients {
				require.EqualValues(t, 1_048_576, set.set.Size, "docs/limits.md says so")
				require.True(t, set.set.HasTimeout, "a client that does not come back expires")
			}
		}
		remembers := 0
		for _, c := range l.affinityChains(time.Minute) {
			for i, rule := range c.rules {
				for _, s := range rule {
					if strings.HasPrefix(s.text, "update @"+mapClients) {
						remembers++
						require.Len(t, rule, 1, "the rule does nothing else")
						require.Equal(t, "jump forward_to_node", c.rules[i+1][0].text)
					}
				}
			}
		}
		require.Equal(t, 2, remembers, "for new clients, and for stored ones")
	}
}

// So a tenant's limit of new connections bounds its number of stored clients.
func TestAConnectionBeyondALimitStoresNoClient(t *testing.T) {
	l := described(families[0])
	var admit, choose *chain
	for _, c := range l.baseChains() {
		switch c.name {
		case "admit":
			admit = &c
		case "prerouting":
			choose = &c
		}
	}
	require.Less(t, admit.priority, choose.priority, "limits come first")
	require.Contains(t, choose.rules[0][1].text, mapAffinities)
}
