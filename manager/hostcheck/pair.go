package hostcheck

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
)

// pairCheck checks that the kernel can make a pair of virtual interfaces.
func pairCheck(host preflight.Host) dataplane.Check {
	if has, err := host.Has(preflight.NetAdmin); err == nil && !has {
		return pairCheckAfter(host.Modules(), unix.EPERM)
	}
	return pairCheckAfter(host.Modules(), tryPair())
}

// pairCheckAfter returns the check after an attempt to make a pair, which returned err.
func pairCheckAfter(modules preflight.Modules, err error) dataplane.Check {
	trial := preflight.Fails
	switch {
	case err == nil:
		trial = preflight.Works
	case errors.Is(err, errNoNamespace), errors.Is(err, unix.EPERM):
		trial = preflight.NotTried
	}
	c := modules.Check("veth", "VETH", trial, "tries of the ports that this gateway answers for")
	if errors.Is(err, unix.EPERM) {
		// No advice about the module: the line about the capability says what to do.
		c.State, c.Found, c.Command, c.Advice = dataplane.CheckUnknown, "cannot be checked without the capability NET_ADMIN", "", ""
	}
	return c
}

// errNoNamespace: this process may not make a network namespace.
var errNoNamespace = errors.New("cannot make a network namespace")

// tryPair makes a pair of virtual interfaces in a network namespace of its own.
func tryPair() error {
	err := errNoNamespace
	preflight.InNetworkNamespace(func() {
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "other"})
	})
	return err
}
