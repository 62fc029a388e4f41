package preflight

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Trial is what became of an attempt to use a module. The kernel loads a module when it is used, if it can.
type Trial int

// What became of it.
const (
	NotTried Trial = iota
	Works
	Fails
)

// Check is the check of a module that the kernel option, without CONFIG_, builds. A trial tells more than lists of modules do.
// Costs is what does not work without it, empty if nothing does.
func (m Modules) Check(name, option string, trial Trial, costs string) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupModules, Subject: "module " + name, Costs: costs, State: dataplane.CheckOK}
	presence := m.Presence(name, option)
	c.Found = m.describe(presence, option)
	switch {
	case trial == Works && presence != BuiltIn && presence != Loaded:
		c.Found = "works"
		return c
	case trial == Works:
		return c
	case trial == NotTried && (presence == BuiltIn || presence == Loaded):
		return c
	case trial == NotTried && presence == Loadable:
		c.Found = "the kernel loads it when it is used"
		return c
	case trial == NotTried && presence == Untold:
		c.State = dataplane.CheckUnknown
		return c
	}
	c.State = dataplane.CheckMissing
	m.mend(&c, name, option, presence)
	return c
}

func (m Modules) describe(p Presence, option string) string {
	switch p {
	case BuiltIn:
		return "built in"
	case Loaded:
		return "loaded"
	case Loadable:
		return "not loaded"
	case NotBuilt:
		return "this kernel is built without CONFIG_" + option
	case NotInstalled:
		return "not among the modules of this kernel (" + m.release + ")"
	case OtherRelease:
		return "not loaded; /lib/modules has modules of other kernels, and none of the running one, " + m.release
	}
	return "not loaded; /lib/modules is not to be read here, so that it is unknown whether this kernel has it"
}

// mend says how the module gets there.
func (m Modules) mend(c *dataplane.Check, name, option string, p Presence) {
	load := fmt.Sprintf("modprobe %s && echo %s >> /etc/modules-load.d/kubelb.conf", name, name)
	switch p {
	case BuiltIn, Loaded:
		c.Found += ", and the kernel refuses to use it here"
		c.Advice = "look for the reason in the kernel's log: dmesg"
	case NotBuilt:
		c.Advice = "boot a kernel that is built with CONFIG_" + option
	case OtherRelease:
		c.Command, c.Advice = "reboot", "the kernel was upgraded since it was booted, so that its modules are gone"
	case NotInstalled:
		if install := m.installs(); install != "" {
			c.Command = install + " && " + load
		} else {
			c.Advice = "install the package with all modules of this kernel, or boot a kernel that is built with CONFIG_" + option
		}
	case Loadable:
		c.Command = load
	default:
		c.Command, c.Advice = load, "on the host itself; where modprobe does not find the module, boot a kernel that is built with CONFIG_"+option
	}
	if m.frozen && c.Command != "" && p != OtherRelease {
		c.Command = fmt.Sprintf("echo %s >> /etc/modules-load.d/kubelb.conf && reboot", name)
		c.Advice = "until then the kernel loads no modules: the sysctl kernel.modules_disabled is 1"
	}
}

// installs is the command that installs the modules which distributions keep apart; empty if unknown.
func (m Modules) installs() string {
	text, _ := m.host.read("etc/os-release")
	of := func(key string) string {
		for line := range strings.Lines(text) {
			if value, is := strings.CutPrefix(line, key+"="); is {
				return strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
		return ""
	}
	for _, id := range strings.Fields(of("ID") + " " + of("ID_LIKE")) {
		switch id {
		case "ubuntu":
			return "apt-get install -y linux-modules-extra-" + m.release
		case "fedora", "rhel":
			return "dnf install -y kernel-modules-extra-" + m.release
		}
	}
	return ""
}
