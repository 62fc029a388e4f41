package preflight

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
)

// Capability is one of capabilities(7), by its number.
type Capability int

// The capabilities that dataplanes need.
const (
	NetBindService Capability = unix.CAP_NET_BIND_SERVICE
	NetAdmin       Capability = unix.CAP_NET_ADMIN
	NetRaw         Capability = unix.CAP_NET_RAW
	SysAdmin       Capability = unix.CAP_SYS_ADMIN
	Perfmon        Capability = unix.CAP_PERFMON
	BPF            Capability = unix.CAP_BPF
)

// String returns the name as in securityContext.capabilities, without CAP_.
func (c Capability) String() string {
	names := map[Capability]string{NetBindService: "NET_BIND_SERVICE", NetAdmin: "NET_ADMIN", NetRaw: "NET_RAW", SysAdmin: "SYS_ADMIN", Perfmon: "PERFMON", BPF: "BPF"}
	if name, known := names[c]; known {
		return name
	}
	return strconv.Itoa(int(c))
}

// Has reports whether the calling thread has the capability.
func (h Host) Has(c Capability) (bool, error) {
	text, err := h.read("proc/thread-self/status")
	if err != nil {
		return false, fmt.Errorf("capabilities of this process: %w", err)
	}
	for line := range strings.Lines(text) {
		if hexadecimal, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hexadecimal), 16, 64)
			if err != nil {
				return false, fmt.Errorf("capabilities of this process: %w", err)
			}
			return set&(1<<c) != 0, nil
		}
	}
	return false, fmt.Errorf("capabilities of this process: /proc/thread-self/status has no line CapEff")
}

// Capability checks that this process has a capability, or another capability that implies it.
func (h Host) Capability(c Capability, costs string, implied ...Capability) dataplane.Check {
	check := dataplane.Check{Group: dataplane.GroupCapabilities, Subject: "capability " + c.String(), Costs: costs, State: dataplane.CheckOK, Found: "this process has it"}
	for _, candidate := range append([]Capability{c}, implied...) {
		has, err := h.Has(candidate)
		if err != nil {
			check.State, check.Found = dataplane.CheckUnknown, err.Error()
			return check
		}
		if has {
			if candidate != c {
				check.Found = candidate.String() + " implies it"
			}
			return check
		}
	}
	check.State, check.Found = dataplane.CheckMissing, "this process does not have it"
	check.Advice = fmt.Sprintf("run it as root; in a container, add %s to securityContext.capabilities.add; in a unit of systemd, add CAP_%s to AmbientCapabilities and CapabilityBoundingSet", c, c)
	return check
}
