package hostcheck

import (
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight"
)

// tryPair makes a pair of virtual interfaces in a network namespace of its own, if this process may make one.
func tryPair() preflight.Trial {
	trial := preflight.Fails
	may := preflight.InOwnNetwork(func() {
		if netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "other"}) == nil {
			trial = preflight.Works
		}
	})
	if !may {
		return preflight.NotTried
	}
	return trial
}
