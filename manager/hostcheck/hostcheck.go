// Package hostcheck checks what a gateway needs of its host whatever its dataplane is: interfaces, ports, a disk and a clock.
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

// Needs are what a gateway is told that has to be there.
type Needs struct {
	// Interfaces are where it announces addresses by ARP and NDP, and hears other gateways.
	Interfaces []string
	// Answers: it answers for addresses on them.
	Answers bool
	// Packets: it sends and hears frames of its own on them.
	Packets bool
	// BeforeStart: no gateway has taken yet what it takes for its own, and none says which families its interfaces carry.
	BeforeStart bool
	// Tries: it tries what it answers for, by a pair of virtual interfaces.
	Tries bool
	// Ports are where it is going to listen. A gateway that listens already gives none.
	Ports []Port
	// StateDir is where it keeps what has to outlive it; empty where it keeps nothing.
	StateDir string
	// HubTime asks the management cluster for its time; nil where it is not known or not to be asked.
	HubTime func(context.Context) (time.Time, error)
}

// Checks looks at the host. It takes as long as HubTime does at most, and changes nothing.
func (n Needs) Checks(ctx context.Context) []dataplane.Check {
	var checks []dataplane.Check
	host := preflight.Host{}
	if n.Packets {
		checks = append(checks, host.Capability(preflight.NetRaw, ""))
	}
	if n.Answers && len(n.Interfaces) == 0 {
		checks = append(checks, dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interfaces", State: dataplane.CheckMissing, Found: "none is named",
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

// ownerChecks look for what other programs have under names that a gateway takes for its own.
func (n Needs) ownerChecks() []dataplane.Check {
	checks := transit.OwnerChecks()
	if n.Tries {
		checks = append(checks, watchdog.OwnerChecks()...)
	}
	return checks
}

// interfaceCheck tells whether an interface is there, is up, has a carrier and, to answer for addresses, is an Ethernet.
func (n Needs) interfaceCheck(name string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: "interface " + name, State: dataplane.CheckOK, Found: "is up"}
	if !n.Answers {
		c.Costs = "hearing other gateways there"
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
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "is no Ethernet interface, so that it has neither ARP nor NDP", "name an Ethernet interface by --announce-interfaces, or use --announce=bgp"
	case device.Flags&net.FlagUp == 0:
		c.State, c.Found, c.Command = dataplane.CheckMissing, "is down", "ip link set dev "+name+" up"
	case device.Flags&net.FlagRunning == 0:
		c.State, c.Found, c.Advice = dataplane.CheckMissing, "is up and has no carrier", "connect its cable, or bring up what it is connected to"
	}
	return c
}

// nameInterfaces is the advice to name interfaces, with all that there are but for the loopback.
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

// isEthernet asks for the hardware type of an interface (netdevice(7)).
func isEthernet(name string) (bool, error) {
	socket, err := net.ListenPacket("udp4", ":0") // any socket will do
	if err != nil {
		return false, fmt.Errorf("hardware type of interface %s: %w", name, err)
	}
	defer socket.Close()
	conn, ok := socket.(*net.UDPConn)
	if !ok {
		return false, fmt.Errorf("hardware type of interface %s: the socket is no UDP socket", name)
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

// reversePathCheck tells whether the kernel drops what comes in by an interface that it would not answer by. The larger of the interface's
// own setting and that of all counts, and 2 is more tolerant than 1 (ip-sysctl.rst).
func reversePathCheck(host preflight.Host, name string) dataplane.Check {
	own := "net/ipv4/conf/" + name + "/rp_filter"
	c := dataplane.Check{Group: dataplane.GroupSysctls, Subject: "sysctl " + preflight.SysctlName(own), State: dataplane.CheckOK,
		Costs: "clients with asymmetric routes, and connections that another gateway hands over"}
	largest := "0"
	for _, key := range []string{own, "net/ipv4/conf/all/rp_filter"} {
		value, err := host.SysctlValue(key)
		if err != nil {
			c.State, c.Found = dataplane.CheckUnknown, err.Error()
			return c
		}
		largest = max(largest, value)
	}
	c.Found = "counts as " + largest + ", the larger of it and net.ipv4.conf.all.rp_filter"
	if largest == "1" {
		c.State, c.Command = dataplane.CheckMissing, preflight.SetSysctl(own, "2")
		c.Found += ": the kernel drops a packet if the route back to its source leaves by another interface"
	}
	return c
}

// clockCheck tells whether this host's clock is right, as far as the kernel and the management cluster can tell.
func clockCheck(ctx context.Context, hubTime func(context.Context) (time.Time, error)) []dataplane.Check {
	const costs = "certificates and tokens, which are valid for a time"
	set := dataplane.Check{Group: dataplane.GroupClock, Subject: "clock", Costs: costs, State: dataplane.CheckOK, Found: "is kept right"}
	state, err := unix.Adjtimex(&unix.Timex{})
	switch {
	case err != nil:
		set.State, set.Found = dataplane.CheckUnknown, err.Error()
	case state == unix.TIME_ERROR:
		// It may be right nevertheless: a hypervisor may set the clock and tell the kernel nothing.
		set.State, set.Found = dataplane.CheckUnknown, "the kernel does not know whether it is right"
		set.Command, set.Advice = setClock, needsClockProgram
	}
	checks := []dataplane.Check{set}
	if hubTime == nil {
		return checks
	}
	skew := dataplane.Check{Group: dataplane.GroupClock, Subject: "clock beside the management cluster's", Costs: costs, State: dataplane.CheckOK}
	before := time.Now()
	there, err := hubTime(ctx)
	if err != nil {
		skew.State, skew.Found = dataplane.CheckUnknown, err.Error()
		return append(checks, skew)
	}
	skew.Found = fmt.Sprintf("less than %s apart", mostApart)
	if apart := between(before, time.Now(), there); apart >= mostApart {
		// Rounded, the text stays the same from one look to the next.
		skew.State, skew.Found, skew.Command = dataplane.CheckMissing, fmt.Sprintf("about %s apart", apart.Round(mostApart)), setClock
		skew.Advice = needsClockProgram
	}
	return append(checks, skew)
}

// The command that has the clock kept right, and what it needs.
const setClock, needsClockProgram = "timedatectl set-ntp true", "needs chrony or systemd-timesyncd"

// mostApart is how far apart two clocks may be.
const mostApart = 10 * time.Second

// between is how far a time, which is known to a second, lies outside of a span.
func between(first, last, at time.Time) time.Duration {
	switch {
	case at.Before(first.Add(-time.Second)):
		return first.Sub(at)
	case at.After(last):
		return at.Sub(last)
	}
	return 0
}
