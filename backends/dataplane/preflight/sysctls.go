package preflight

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Sysctl is a required setting of the kernel.
type Sysctl struct {
	// Key is its path below /proc/sys: net/ipv4/ip_forward.
	Key string
	// Good reports whether a value is good. Want is a good value.
	Good func(value string) bool
	Want string
	// Why says what happens with another value. Costs is what does not work then, empty if nothing does.
	Why, Costs string
	// Optional is set if a kernel without the setting does not need it, as for IPv6.
	Optional bool
}

// NotZero is Good for a setting that has to be on.
func NotZero(value string) bool { return value != "0" }

// SysctlName returns the name of a key for sysctl(8): net.ipv4.ip_forward. A key with a dot in an element, such as the name of a VLAN, stays
// a path.
func SysctlName(key string) string {
	if strings.Contains(key, ".") {
		return key
	}
	return strings.ReplaceAll(key, "/", ".")
}

// SetSysctl returns the command that sets a value, now and after each boot.
func SetSysctl(key, value string) string {
	name := SysctlName(key)
	return fmt.Sprintf("sysctl -w %s=%s && echo %s=%s >> /etc/sysctl.d/90-kubelb.conf", name, value, name, value)
}

// SysctlValue returns the value of a setting.
func (h Host) SysctlValue(key string) (string, error) {
	value, err := h.read("proc/sys", key)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", SysctlName(key), err)
	}
	return strings.TrimSpace(value), nil
}

// Sysctl checks a setting. Settings below net are of the calling thread's network namespace.
func (h Host) Sysctl(s Sysctl) dataplane.Check {
	name := SysctlName(s.Key)
	c := dataplane.Check{Group: dataplane.GroupSysctls, Subject: "sysctl " + name, Costs: s.Costs, State: dataplane.CheckOK}
	value, err := h.SysctlValue(s.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.Optional:
		c.Found = "this kernel does not have the setting and does not need it"
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case s.Good(value):
		c.Found = "is " + value
	default:
		c.State, c.Found = dataplane.CheckMissing, fmt.Sprintf("is %s: %s", value, s.Why)
		c.Command = SetSysctl(s.Key, s.Want)
	}
	return c
}

// RequireSysctl returns an error with a remedy if a setting is 0. consequence says what that means: "so this host forwards no packets".
func (h Host) RequireSysctl(key, consequence string) error {
	value, err := h.SysctlValue(key)
	if err != nil {
		return err
	}
	if name := SysctlName(key); !NotZero(value) {
		return fmt.Errorf("sysctl %s is 0, %s: run 'sysctl -w %s=1' and make it permanent", name, consequence, name)
	}
	return nil
}

// RequireForwarding returns an error with a remedy if the host does not forward packets of the family. The error wraps fs.ErrNotExist if the kernel
// does not have the family.
func (h Host) RequireForwarding(v4 bool) error {
	if v4 {
		return h.RequireSysctl("net/ipv4/ip_forward", "so this host forwards no IPv4 packets")
	}
	return h.RequireSysctl(ForwardsIPv6("all"), "so this host forwards no IPv6 packets")
}

// Forwarding checks that the host forwards packets of both families. costs is what does not work otherwise, empty if nothing does.
func (h Host) Forwarding(costs string) []dataplane.Check {
	return []dataplane.Check{h.ForwardingIPv4(costs), h.ForwardingIPv6(costs)}
}

// ForwardingIPv4 checks that the host forwards packets of IPv4.
func (h Host) ForwardingIPv4(costs string) dataplane.Check {
	return h.Sysctl(Sysctl{Key: "net/ipv4/ip_forward", Good: NotZero, Want: "1", Why: "this host forwards no IPv4 packets", Costs: costs, Optional: true})
}

// ForwardingIPv6 checks that the host forwards packets of IPv6. Its command keeps the routes that the host learns from routers.
func (h Host) ForwardingIPv6(costs string) dataplane.Check {
	c := h.Sysctl(Sysctl{Key: ForwardsIPv6("all"), Good: NotZero, Want: "1", Why: "this host forwards no IPv6 packets", Costs: costs, Optional: true})
	if c.Command != "" {
		c.Command = h.forwardIPv6()
	}
	return c
}
