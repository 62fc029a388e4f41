package preflight

import (
	"fmt"
	"slices"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Values of accept_ra (ip-sysctl.rst). With 0 the kernel ignores router advertisements, and another program may handle them.
const (
	// HearsUnlessForwarding is the kernel's default: an interface that forwards ignores them, and loses what it has learned when it begins to.
	HearsUnlessForwarding = "1"
	// HearsAlways is for an interface that forwards and learns its routes by router advertisements.
	HearsAlways = "2"
)

// AcceptRA is the sysctl of how an interface takes router advertisements. That of "all" has no effect.
func AcceptRA(name string) string { return "net/ipv6/conf/" + name + "/accept_ra" }

// ForwardsIPv6 is the sysctl of whether an interface forwards. That of "all" sets that of each.
func ForwardsIPv6(name string) string { return "net/ipv6/conf/" + name + "/forwarding" }

// advertised are the interfaces where a router has advertised itself, whether the kernel took that or not. On others, such as those of containers,
// it does not matter whether it would.
func (h Host) advertised() (names []string) {
	const counters = "proc/thread-self/net/dev_snmp6"
	for _, name := range h.list(counters) {
		text, err := h.read(counters, name)
		if err != nil {
			continue // the interface has just gone
		}
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "Icmp6InRouterAdvertisements" && fields[1] != "0" {
				names = append(names, name)
			}
		}
	}
	return names
}

// RouterAdvertisements checks each interface with a router that the kernel itself listens to: that forwarding does not keep it from that.
func (h Host) RouterAdvertisements() (checks []dataplane.Check) {
	for _, name := range h.advertised() {
		accepts, err := h.SysctlValue(AcceptRA(name))
		if err != nil || !slices.Contains([]string{HearsUnlessForwarding, HearsAlways}, accepts) {
			continue
		}
		forwards, err := h.SysctlValue(ForwardsIPv6(name))
		if err != nil {
			continue
		}
		c := dataplane.Check{Group: dataplane.GroupSysctls, Subject: "sysctl " + SysctlName(AcceptRA(name)), Costs: "IPv6 routes by router advertisement", State: dataplane.CheckOK, Found: "is " + accepts}
		if accepts == HearsUnlessForwarding && NotZero(forwards) {
			c.State, c.Command = dataplane.CheckMissing, SetSysctl(AcceptRA(name), HearsAlways)
			c.Found += ": the kernel ignores router advertisements where it forwards, and a router sends them there"
		}
		checks = append(checks, c)
	}
	return checks
}

// forwardIPv6 is the command that has the host forward IPv6, without the loss of what it has learned from routers.
func (h Host) forwardIPv6() string {
	var commands []string
	for _, name := range h.advertised() {
		if accepts, err := h.SysctlValue(AcceptRA(name)); err == nil && accepts == HearsUnlessForwarding {
			commands = append(commands, SetSysctl(AcceptRA(name), HearsAlways))
		}
	}
	return strings.Join(append(commands, SetSysctl(ForwardsIPv6("all"), "1")), " && ")
}

// SettingsOf are the values of the sysctls that the checks name, in a text that is another one when a value is.
func (h Host) SettingsOf(checks []dataplane.Check) string {
	var text strings.Builder
	for _, c := range checks {
		name, is := strings.CutPrefix(c.Subject, "sysctl ")
		if c.Group != dataplane.GroupSysctls || !is {
			continue
		}
		value, err := h.SysctlValue(sysctlKey(name))
		fmt.Fprintln(&text, name, value, err)
	}
	return text.String()
}

// sysctlKey is the reverse of SysctlName.
func sysctlKey(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return strings.ReplaceAll(name, ".", "/")
}
