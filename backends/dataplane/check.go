package dataplane

import (
	"fmt"
	"strings"
)

// Group is the topic of a Check. A Gateway has a condition Host<Group> for each group in which something is missing.
type Group string

// The groups.
const (
	GroupKernel       Group = "Kernel"       // its release, and features that are no modules
	GroupModules      Group = "Modules"      // kernel modules, built in or loadable
	GroupBTF          Group = "BTF"          // type information for BPF programs
	GroupMounts       Group = "Mounts"       // file systems
	GroupStorage      Group = "Storage"      // files that have to outlive this process
	GroupPrograms     Group = "Programs"     // binaries that the plugin starts
	GroupSysctls      Group = "Sysctls"      // settings below /proc/sys
	GroupCapabilities Group = "Capabilities" // capabilities(7) of this process
	GroupInterfaces   Group = "Interfaces"   // network interfaces
	GroupPorts        Group = "Ports"        // ports that this process listens at
	GroupOwners       Group = "Owners"       // other programs that own what the dataplane needs for itself
	GroupClock        Group = "Clock"        // the time of this host
)

// Groups returns all groups, in the order in which they are shown: a group that others depend on comes before them.
func Groups() []Group {
	return []Group{GroupKernel, GroupModules, GroupBTF, GroupMounts, GroupStorage, GroupPrograms, GroupCapabilities, GroupSysctls, GroupInterfaces, GroupPorts, GroupOwners, GroupClock}
}

// CheckState is the outcome of a Check.
type CheckState string

// The outcomes.
const (
	CheckOK      CheckState = "OK"
	CheckMissing CheckState = "Missing"
	// CheckUnknown says that the check could not be made. Found says why.
	CheckUnknown CheckState = "Unknown"
)

// Check is one requirement of this host, and whether the host meets it.
type Check struct {
	Group Group
	// Subject is what is required, its kind before its name: "module nft_ct", "sysctl net.ipv4.ip_forward".
	Subject string
	State   CheckState
	// Costs is what does not work while the subject is missing, such as "forwarding: direct". If it is empty, nothing works without the subject.
	Costs string
	// Found says in a few words what was found.
	Found string
	// Command is the shell command that fixes it, empty if no command does.
	Command string
	// Advice is a sentence about what the command does not do.
	Advice string
}

// Required reports whether nothing works while the subject is missing.
func (c Check) Required() bool { return c.Costs == "" }

// Outcome says what was found, and what does not work because of it.
func (c Check) Outcome() string {
	switch {
	case c.State == CheckOK || c.Required():
		return c.Found
	case c.State == CheckMissing:
		return c.Found + "; does not work: " + c.Costs
	}
	return c.Found + "; may not work: " + c.Costs
}

// Fix is the command, or the advice, or both, for people. It is empty if there is nothing to do. After a command the advice is a shell comment, so that the
// whole line can be copied.
func (c Check) Fix() string {
	switch {
	case c.State == CheckOK:
		return ""
	case c.Command == "":
		return c.Advice
	case c.Advice == "":
		return "run: " + c.Command
	}
	return "run: " + c.Command + "     # " + c.Advice
}

// String returns the check in one line, with its fix.
func (c Check) String() string {
	text := c.Subject + ": " + c.Outcome()
	if fix := c.Fix(); fix != "" {
		text += "; " + fix
	}
	return text
}

// Lacking returns the checks whose subject is missing, required ones first.
func Lacking(checks []Check) (lacking []Check) {
	for _, required := range []bool{true, false} {
		for _, c := range checks {
			if c.State == CheckMissing && c.Required() == required {
				lacking = append(lacking, c)
			}
		}
	}
	return lacking
}

// MissingError returns an error with one line for each required subject that is missing, nil if there is none.
func MissingError(checks []Check) error {
	var lines []string
	for _, c := range Lacking(checks) {
		if c.Required() {
			lines = append(lines, c.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("this host lacks what the dataplane needs:\n%s", strings.Join(lines, "\n"))
}
