package preflight

import (
	"fmt"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
)

// Trial is the result of an attempt to use a module. The kernel loads a module when it is used, if it can.
type Trial int

// The results.
const (
	NotTried Trial = iota
	Works
	Fails
)

// Check checks a module that is built by the kernel option, whose name is without CONFIG_. The result of a trial counts more than
// lists of modules. costs is what does not work without the module, empty if nothing does.
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
	case trial == NotTried && presence == Unknown:
		c.State = dataplane.CheckUnknown
		return c
	}
	c.State = dataplane.CheckMissing
	m.addFix(&c, name, option, presence)
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
	return "not loaded; /lib/modules cannot be read here, so that it is unknown whether this kernel has it"
}

// addFix adds the command or advice that makes the module available.
func (m Modules) addFix(c *dataplane.Check, name, option string, p Presence) {
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
		if install := m.installCommand(); install != "" {
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

// installCommand returns the command that installs the distribution's package of extra modules, empty if it is unknown.
func (m Modules) installCommand() string {
	text, _ := m.host.read("etc/os-release")
	valueOf := func(key string) string {
		for line := range strings.Lines(text) {
			if value, ok := strings.CutPrefix(line, key+"="); ok {
				return strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
		return ""
	}
	for _, id := range strings.Fields(valueOf("ID") + " " + valueOf("ID_LIKE")) {
		switch id {
		case "ubuntu":
			return "apt-get install -y linux-modules-extra-" + m.release
		case "fedora", "rhel":
			return "dnf install -y kernel-modules-extra-" + m.release
		}
	}
	return ""
}
