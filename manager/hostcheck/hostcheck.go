// Package hostcheck checks what a gateway needs of its host with any dataplane: interfaces, ports, a disk and a clock.
package hostcheck

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/dataplane/preflight"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/descriptor"
	"kubelb.k8c.io/manager/transit"
	"kubelb.k8c.io/manager/watchdog"
)

// Needs is what a gateway needs by its flags.
type Needs struct {
	// Interfaces are the interfaces for ARP, NDP and heartbeats.
	Interfaces []string
	// Answers: the gateway answers ARP and NDP on them.
	Answers bool
	// Packets: the gateway uses packet sockets on them.
	Packets bool
	// BeforeStart: no gateway runs yet, which would own tables and interfaces and would report the families of its interfaces.
	BeforeStart bool
	// Tries: the gateway tries its ports by a pair of virtual interfaces.
	Tries bool
	// Ports are the ports at which the gateway is going to listen. A gateway that listens already gives none.
	Ports []Port
	// StateDir is the directory for state that survives restarts; empty for none.
	StateDir string
	// HubTime returns the time of the management cluster. It may be nil.
	HubTime func(context.Context) (time.Time, error)
}

// Checks checks the host. It changes nothing. Only the call of HubTime may take long.
func (n Needs) Checks(ctx context.Context) []dataplane.Check {
	var checks []dataplane.Check
	host := preflight.Host{}
	if n.Packets {
		checks = append(checks, host.Capability(preflight.NetRaw, ""))
	}
	if n.Answers && len(n.Interfaces) == 0 {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interfaces", State: dataplane.CheckMissing, Found: "no interface is named",
			Advice: nameInterfaces()})
	}
	for _, name := range n.Interfaces {
		checks = append(checks, n.interfaceCheck(name))
		if _, err := net.InterfaceByName(name); err == nil {
			checks = append(checks, reversePathCheck(host, name))
		}
		if n.Answers && n.BeforeStart {
			checks = append(checks, announce.FamilyChecks(name)...)
		}
	}
	if n.Tries {
		checks = append(checks, pairCheck(host))
	}
	checks = append(checks, host.RouterAdvertisements()...)
	if n.StateDir != "" {
		checks = append(checks, storageCheck(n.StateDir))
	}
	for _, p := range n.Ports {
		checks = append(checks, p.check())
	}
	if n.BeforeStart {
		checks = append(checks, n.ownerChecks()...)
	}
	return append(checks, clockCheck(ctx, n.HubTime)...)
}

// ownerChecks looks for objects of other programs under names that the gateway uses.
func (n Needs) ownerChecks() []dataplane.Check {
	checks := transit.OwnerChecks()
	if n.Tries {
		checks = append(checks, watchdog.OwnerChecks()...)
	}
	return checks
}

// interfaceCheck checks that an interface exists, is an Ethernet interface, is up and has a carrier.
func (n Needs) interfaceCheck(name string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interface " + name, State: dataplane.CheckOK, Found: "is up"}
	if !n.Answers {
		c.Costs = "heartbeats of other gateways on this interface"
	}
	device, err := net.InterfaceByName(name)
	if err != nil {
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "no interface has this name", nameInterfaces()
		return c
	}
	ethernet, err := isEthernet(name)
	switch {
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case !ethernet:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "is not an Ethernet interface, so it has neither ARP nor NDP", "name an Ethernet interface by --announce-interfaces, or use --announce=bgp"
	case device.Flags&net.FlagUp == 0:
		c.State, c.Found, c.Command = dataplane.CheckMissing, "is down", "ip link set dev "+name+" up"
	case device.Flags&net.FlagRunning == 0:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "is up and has no carrier", "connect its cable, or bring up the device at the other end"
	}
	return c
}

// nameInterfaces returns the advice to name interfaces, with the interfaces of this host.
func nameInterfaces() string {
	const advice = "name the interfaces of the clients' segment by --announce-interfaces"
	all, err := net.Interfaces()
	var names []string
	for _, one := range all {
		if one.Flags&net.FlagLoopback == 0 {
			names = append(names, one.Name)
		}
	}
	if err != nil || len(names) == 0 {
		return advice
	}
	return advice + "; this host has " + strings.Join(names, ", ")
}

// isEthernet reads the hardware type of an interface (netdevice(7)).
func isEthernet(name string) (bool, error) {
	socket, err := net.ListenPacket("udp4", ":0") // any socket will do
	if err != nil {
		return false, fmt.Errorf("hardware type of interface %s: %w", name, err)
	}
	defer socket.Close()
	conn, ok := socket.(*net.UDPConn)
	if !ok {
		return false, fmt.Errorf("hardware type of interface %s: the socket is not a UDP socket", name)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	if err := descriptor.With(conn, func(fd int) error { return unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, request) }); err != nil {
		return false, fmt.Errorf("hardware type of interface %s: %w", name, err)
	}
	return request.Uint16() == unix.ARPHRD_ETHER, nil
}

// reversePathCheck checks that the kernel does not drop packets whose answers leave by another interface. The larger of the interface's setting and the
// setting "all" counts, and 2 is more tolerant than 1 (ip-sysctl.rst).
func reversePathCheck(host preflight.Host, name string) dataplane.Check {
	own := "net/ipv4/conf/" + name + "/rp_filter"
	c := dataplane.Check{Group: dataplane.GroupSysctls, Subject: "sysctl " + preflight.SysctlName(own), State: dataplane.CheckOK,
		Costs: "clients with asymmetric routes, and connections that another gateway redirects"}
	largest := "0"
	for _, key := range []string{own, "net/ipv4/conf/all/rp_filter"} {
		value, err := host.SysctlValue(key)
		if err != nil {
			c.State, c.Found = dataplane.CheckUnknown, err.Error()
			return c
		}
		largest = max(largest, value)
	}
	c.Found = "the effective value is " + largest + ", the larger of this sysctl and net.ipv4.conf.all.rp_filter"
	if largest == "1" {
		c.State, c.Command = dataplane.CheckMissing, preflight.SetSysctl(own, "2")
		c.Found += ": the kernel drops a packet if the route back to its source leaves by another interface"
	}
	return c
}

// clockCheck checks this host's clock by the kernel's state, and by the time of the management cluster.
func clockCheck(ctx context.Context, hubTime func(context.Context) (time.Time, error)) []dataplane.Check {
	const costs = "certificates and tokens, which are valid for a time"
	set := dataplane.Check{Group: dataplane.GroupClock, Subject: "clock", Costs: costs, State: dataplane.CheckOK, Found: "is synchronised"}
	state, err := unix.Adjtimex(&unix.Timex{})
	switch {
	case err != nil:
		set.State, set.Found = dataplane.CheckUnknown, err.Error()
	case state == unix.TIME_ERROR:
		// The clock may be right nevertheless: a hypervisor may set it without the kernel's knowledge.
		set.State, set.Found = dataplane.CheckUnknown, "the kernel does not know whether the clock is right"
		set.Command, set.Advice = setClock, needsClockProgram
	}
	checks := []dataplane.Check{set}
	if hubTime == nil {
		return checks
	}
	skew := dataplane.Check{Group: dataplane.GroupClock, Subject: "clock compared with the management cluster's", Costs: costs, State: dataplane.CheckOK}
	before := time.Now()
	there, err := hubTime(ctx)
	if err != nil {
		skew.State, skew.Found = dataplane.CheckUnknown, err.Error()
		return append(checks, skew)
	}
	skew.Found = fmt.Sprintf("less than %s apart", maxSkew)
	if apart := distance(before, time.Now(), there); apart >= maxSkew {
		// Rounded, the text is the same in each check.
		skew.State, skew.Found, skew.Command = dataplane.CheckMissing, fmt.Sprintf("about %s apart", apart.Round(maxSkew)), setClock
		skew.Advice = needsClockProgram
	}
	return append(checks, skew)
}

// The command that turns on synchronisation of the clock, and what it needs.
const setClock, needsClockProgram = "timedatectl set-ntp true", "needs chrony or systemd-timesyncd"

// maxSkew is the greatest accepted difference between the clocks.
const maxSkew = 10 * time.Second

// distance returns how far a time, which is known to a second, is outside of a span.
func distance(first, last, at time.Time) time.Duration {
	switch {
	case at.Before(first.Add(-time.Second)):
		return first.Sub(at)
	case at.After(last):
		return at.Sub(last)
	}
	return 0
}
