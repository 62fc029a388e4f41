// Package guest runs on a kernel that package kernels boots. It is the first process, which mounts file systems, loads modules and runs the steps of a plan,
// and the program that the kernel calls to load a module.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Paths in the guest.
const (
	// PlanPath has the Plan, as JSON.
	PlanPath = "/etc/kubelb/plan.json"
	// ModulesPath has the Modules, as JSON.
	ModulesPath = "/etc/kubelb/modules.json"
	// ResultsDir is the directory whose files the host gets after each step.
	ResultsDir = "/results"
)

// Lines on the console that the host reads. Other output may be before and after them in the same line, because the kernel prints at any time.
const (
	// StepBegan is followed by the name of a step.
	StepBegan = "kernels: began "
	// StepEnded is followed by the name of a step, its exit status, and the number of bytes of results that have been sent until then, separated by spaces. The
	// results reach the host on another device, and may arrive later than the line.
	StepEnded = "kernels: ended "
	// Failed is followed by the reason for which the guest stops the plan.
	Failed = "kernels: cannot go on: "
	// AllEnded is the guest's last line.
	AllEnded = "kernels: all steps have ended"
)

// StatusLimit is the exit status of a step that exceeded its limit, the same as that of timeout(1).
const StatusLimit = 124

// Plan has the steps of the guest.
type Plan struct {
	// Modules are loaded before the first step. The kernel loads other modules on demand.
	Modules []string `json:"modules,omitempty"`
	Steps   []Step   `json:"steps"`
}

// Step is a program that the guest runs as root, with the console as its output.
type Step struct {
	// Name has no spaces.
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Limit is how long the step may run; 0 means for ever.
	Limit time.Duration `json:"limit,omitempty"`
}

// Module is a kernel module.
type Module struct {
	// Path is the path of the module's file.
	Path string `json:"path"`
	// Needs are the names of the modules that must be loaded before.
	Needs []string `json:"needs,omitempty"`
	// Aliases are other names by which the kernel requests the module. They may have wildcards.
	Aliases []string `json:"aliases,omitempty"`
}

// Modules are the modules of a kernel, by name.
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
