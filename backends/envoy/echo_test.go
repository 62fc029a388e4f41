package envoy

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane/preflight/preflighttest"
	"kubelb.k8c.io/backends/nftables/elements"
)

// uplink creates an interface with this index.
func uplink(index int) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", Index: index}, PeerName: "far"}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	return netlink.LinkSetUp(pair)
}

// sentTo returns where the echo rules send answers: names of interfaces, or the index of a former one.
func sentTo() (to []string, err error) {
	out, err := exec.Command("nft", "--json", "list", "table", "netdev", "trial").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	for _, part := range strings.Split(string(out), `"dup": {"addr": `)[1:] {
		interfaceOrNumber, _, _ := strings.Cut(part, "}")
		to = append(to, strings.Trim(interfaceOrNumber, `"`))
	}
	slices.Sort(to)
	return to, nil
}

func TestAReplacedUplinkAnswersEchoRequests(t *testing.T) {
	var failed error
	var found [][]string
	var left int
	preflighttest.InNetworkNamespace(t, func() {
		e := newEcho("trial")
		try := func(do func() error) {
			if failed == nil {
				failed = do()
			}
		}
		look := func() error {
			to, err := sentTo()
			found = append(found, to)
			return err
		}
		remove := func() error {
			link, err := netlink.LinkByName("uplink")
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}
		try(func() error { return uplink(70) })
		try(func() error {
			c, err := elements.Connect()
			if err != nil {
				return err
			}
			if err := e.create(c); err != nil {
				return err
			}
			return c.Flush()
		})
		for _, next := range []int{71, 71, 72} {
			try(e.ensureChains)
			try(look)
			try(remove)
			try(func() error { return uplink(next) })
		}
		try(e.ensureChains)
		try(look)
		try(remove)
		try(e.ensureChains)
		try(look)
		try(func() error {
			chains, err := e.chains()
			left = len(chains) + len(e.interfaces)
			return err
		})
	})
	require.NoError(t, failed)
	var both []string // at both ends, for IPv4 and IPv6: whole requests, first fragments, and later ones
	for _, end := range []string{"far", "uplink"} {
		both = append(both, slices.Repeat([]string{end}, 2*3)...)
	}
	require.Equal(t, [][]string{both, both, both, both, nil}, found)
	require.Zero(t, left, "the chain of a former interface is deleted")
}
