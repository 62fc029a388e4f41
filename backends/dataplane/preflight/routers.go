package preflight

import (
	"fmt"
	"slices"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Values of accept_ra (ip-sysctl.rst). With 0 the kernel ignores router advertisements, and another program may handle them.
const (
	// AcceptRAUnlessForwarding is the kernel's default: an interface that forwards ignores router advertisements, and loses its learned routes when it
	// begins to forward.
	AcceptRAUnlessForwarding = "1"
	// AcceptRAAlways is for an interface that forwards and learns its routes by router advertisements.
	AcceptRAAlways = "2"
)

// AcceptRA returns the sysctl that says whether an interface accepts router advertisements. That of "all" has no effect.
func AcceptRA(name string) string { return "net/ipv6/conf/" + name + "/accept_ra" }

// ForwardsIPv6 returns the sysctl that says whether an interface forwards. That of "all" sets those of all interfaces.
func ForwardsIPv6(name string) string { return "net/ipv6/conf/" + name + "/forwarding" }

// advertised returns the interfaces that got router advertisements, whether the kernel accepted them or not. The sysctls of other interfaces, such as
// those of containers, do not matter.
func (h Host) advertised() (names []string) {
	const counters = "proc/thread-self/net/dev_snmp6"
	for _, name := range h.list(counters) {
		text, err := h.read(counters, name)
		if err != nil {
			continue // the interface has just been removed
		}
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "Icmp6InRouterAdvertisements" && fields[1] != "0" {
				names = append(names, name)
			}
		}
	}
	return names
}

// RouterAdvertisements checks each interface whose router advertisements the kernel handles: that it does not ignore them because it forwards.
func (h Host) RouterAdvertisements() (checks []dataplane.Check) {
	for _, name := range h.advertised() {
		accepts, err := h.SysctlValue(AcceptRA(name))
		if err != nil || !slices.Contains([]string{AcceptRAUnlessForwarding, AcceptRAAlways}, accepts) {
			continue
		}
		forwards, err := h.SysctlValue(ForwardsIPv6(name))
		if err != nil {
			continue
		}
		c := dataplane.Check{Group: dataplane.GroupSysctls, Subject: "sysctl " + SysctlName(AcceptRA(name)), Costs: "IPv6 routes by router advertisement", State: dataplane.CheckOK, Found: "is " + accepts}
		if accepts == AcceptRAUnlessForwarding && NotZero(forwards) {
			c.State, c.Command = dataplane.CheckMissing, SetSysctl(AcceptRA(name), AcceptRAAlways)
			c.Found += ": the kernel ignores router advertisements where it forwards, and a router sends them there"
		}
		checks = append(checks, c)
	}
	return checks
}

// forwardIPv6 returns the command that makes the host forward IPv6, without losing the routes that it has learned from routers.
func (h Host) forwardIPv6() string {
	var commands []string
	for _, name := range h.advertised() {
		if accepts, err := h.SysctlValue(AcceptRA(name)); err == nil && accepts == AcceptRAUnlessForwarding {
			commands = append(commands, SetSysctl(AcceptRA(name), AcceptRAAlways))
		}
	}
	return strings.Join(append(commands, SetSysctl(ForwardsIPv6("all"), "1")), " && ")
}

// SettingsOf returns the current values of the sysctls in the checks, as a text that differs if a value differs.
func (h Host) SettingsOf(checks []dataplane.Check) string {
	var text strings.Builder
	for _, c := range checks {
		name, ok := strings.CutPrefix(c.Subject, "sysctl ")
		if c.Group != dataplane.GroupSysctls || !ok {
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
