// Package guest is what runs inside a kernel that package kernels boots: the first process, which mounts, loads modules and runs the steps of a plan,
// and the program that the kernel calls when it needs a module.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Where the guest finds what the host has put into its initramfs.
const (
	// PlanPath is the Plan, as JSON.
	PlanPath = "/etc/kubelb/plan.json"
	// ModulesPath lists the modules, as JSON: Modules.
	ModulesPath = "/etc/kubelb/modules.json"
	// ResultsDir is the directory that the host gets after the last step.
	ResultsDir = "/results"
)

// Lines of the console that the host reads. Other output may stand before and after them: what the kernel prints keeps to no line of a program's.
const (
	// StepBegan is followed by the name of a step.
	StepBegan = "kernels: began "
	// StepEnded is followed by the name of a step, its exit status, and the number of bytes that steps have left and that have been sent until then, with a
	// space before each. These bytes have another way to the host than the line, and may be later there.
	StepEnded = "kernels: ended "
	// Broken is followed by the reason for which the guest carries out no more of the plan.
	Broken = "kernels: cannot go on: "
	// AllEnded is the guest's last line.
	AllEnded = "kernels: all steps have ended"
)

// StatusLimit is the exit status of a step that ran for longer than its limit (timeout(1) has the same).
const StatusLimit = 124

// Plan is what the guest does.
type Plan struct {
	// Modules are loaded before the first step. All others are loaded when the kernel asks for them.
	Modules []string `json:"modules,omitempty"`
	Steps   []Step   `json:"steps"`
}

// Step is a program that the guest runs, as root, with the console as its output.
type Step struct {
	// Name has no spaces.
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Limit is for how long it may run; 0 is for ever.
	Limit time.Duration `json:"limit,omitempty"`
}

// Module is a kernel module.
type Module struct {
	// Path is its file's, in the guest.
	Path string `json:"path"`
	// Needs are the names of the modules that must be loaded before it.
	Needs []string `json:"needs,omitempty"`
	// Aliases are other names, by which the kernel asks for it. They may have wildcards.
	Aliases []string `json:"aliases,omitempty"`
}

// Modules are a kernel's, by name.
type Modules map[string]Module

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
