package dataplane

import (
	"fmt"
	"strings"
)

// Group is what a Check is about. A Gateway has a condition Host<Group> for each group in which something is missing.
type Group string

// The groups.
const (
	GroupKernel       Group = "Kernel"       // its release, and what cannot be loaded later
	GroupModules      Group = "Modules"      // what can be built in or loaded
	GroupBTF          Group = "BTF"          // type information for BPF programs
	GroupMounts       Group = "Mounts"       // file systems
	GroupStorage      Group = "Storage"      // what has to outlive this process, on disk
	GroupPrograms     Group = "Programs"     // binaries that the backend starts
	GroupSysctls      Group = "Sysctls"      // settings below /proc/sys
	GroupCapabilities Group = "Capabilities" // capabilities(7) of this process
	GroupInterfaces   Group = "Interfaces"   // network interfaces
	GroupPorts        Group = "Ports"        // ports that this process listens at
	GroupOwners       Group = "Owners"       // other programs that hold what the backend needs for itself
	GroupClock        Group = "Clock"        // the time of this host
)

// Groups are all groups, in the order in which people read them: what later ones need comes first.
func Groups() []Group {
	return []Group{GroupKernel, GroupModules, GroupBTF, GroupMounts, GroupStorage, GroupPrograms, GroupCapabilities, GroupSysctls, GroupInterfaces, GroupPorts, GroupOwners, GroupClock}
}

// CheckState is the outcome of a Check.
type CheckState string

// The outcomes.
const (
	CheckOK      CheckState = "OK"
	CheckMissing CheckState = "Missing"
	// CheckUnknown: the check could not be made. Found says why.
	CheckUnknown CheckState = "Unknown"
)

// Check is one need of this host, and whether it is met.
type Check struct {
	Group Group
	// Subject is what is needed, with its kind before its name: "module nft_ct", "sysctl net.ipv4.ip_forward".
	Subject string
	State   CheckState
	// Costs is what does not work while the subject is missing, such as "forwarding: direct". Empty: nothing works without it.
	Costs string
	// Found is what there is instead, in a few words.
	Found string
	// Command is the shell command that mends it. Empty where no command can.
	Command string
	// Advice is a sentence for what the command does not do.
	Advice string
}

// Required tells whether nothing works while the subject is missing.
func (c Check) Required() bool { return c.Costs == "" }

// Outcome is what was found, and what does not work for that.
func (c Check) Outcome() string {
	switch {
	case c.State == CheckOK || c.Required():
		return c.Found
	case c.State == CheckMissing:
		return c.Found + "; does not work: " + c.Costs
	}
	return c.Found + "; may not work: " + c.Costs
}

// Fix is the command, or the advice, or both, as people are told. It is empty where nothing is to be done. The advice is a comment for the shell, so that
// the whole line can be copied.
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

// String is the check in one line, with its fix.
func (c Check) String() string {
	text := c.Subject + ": " + c.Outcome()
	if fix := c.Fix(); fix != "" {
		text += "; " + fix
	}
	return text
}

// Lacking are the checks whose subject is missing, required ones first.
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

// MissingError says, in one line for each, which required subjects are missing. It is nil where none is.
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
