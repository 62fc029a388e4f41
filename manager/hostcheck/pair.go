package hostcheck

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// pairCheck tells whether the kernel makes pairs of virtual interfaces.
func pairCheck(host preflight.Host) dataplane.Check {
	if has, err := host.Has(preflight.NetAdmin); err == nil && !has {
		return pairCheckAfter(host.Modules(), unix.EPERM)
	}
	return pairCheckAfter(host.Modules(), tryPair())
}

// pairCheckAfter is the check after what became of a try to make a pair.
func pairCheckAfter(modules preflight.Modules, err error) dataplane.Check {
	trial := preflight.Fails
	switch {
	case err == nil:
		trial = preflight.Works
	case errors.Is(err, errNoNamespace), errors.Is(err, unix.EPERM):
		trial = preflight.NotTried
	}
	c := modules.Check("veth", "VETH", trial, "trying the ports that this gateway answers for")
	if errors.Is(err, unix.EPERM) {
		// Whether the module is there or not: the line about the capability says what to do.
		c.State, c.Found, c.Command, c.Advice = dataplane.CheckUnknown, "it cannot be tried without the capability NET_ADMIN", "", ""
	}
	return c
}

// errNoNamespace: this process may not make a network namespace to try something in.
var errNoNamespace = errors.New("no network namespace of its own")

// tryPair makes a pair of virtual interfaces in a network namespace of its own.
func tryPair() error {
	err := errNoNamespace
	preflight.InOwnNetwork(func() {
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "other"})
	})
	return err
}
