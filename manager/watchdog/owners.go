package watchdog

import (
	"bytes"
	"net"

	"github.com/vishvananda/netlink"

	"kubelb.k8c.io/backends/dataplane"
)

// OwnerChecks look for interfaces of another program with the names of the pair. The gateway removes them when it creates its own.
func OwnerChecks() (checks []dataplane.Check) {
	macs := map[string]net.HardwareAddr{hostInterface: hostMAC, clientInterface: clientInterfaceMAC}
	for _, name := range []string{hostInterface, clientInterface} {
		c := dataplane.Check{Group: dataplane.GroupOwners, Subject: "interface " + name, State: dataplane.CheckOK, Found: "no other program has it", Costs: "what that interface is for"}
		link, err := netlink.LinkByName(name)
		switch {
		case unlessGone(err) != nil:
			c.State, c.Found = dataplane.CheckUnknown, err.Error()
		case err == nil && !bytes.Equal(link.Attrs().HardwareAddr, macs[name]):
			c.State, c.Found = dataplane.CheckMissing, "another program has made it; the gateway removes it when it starts to try its ports"
			c.Command = "ip link set dev " + name + " down && ip link set dev " + name + " name OTHERNAME"
		}
		checks = append(checks, c)
	}
	return checks
}
