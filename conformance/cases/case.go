// Package cases has the conformance cases, one case a file. A case drives a backend through the plugin contract and tests
// it by packets alone.
package cases

import (
	"context"
	"io"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/netlab"
)

// Profile says which dataplanes must pass a case.
type Profile string

const (
	// Core cases are for every dataplane.
	Core Profile = "core"
	// Extended cases are for dataplanes that declare the features that the case needs.
	Extended Profile = "extended"
)

// Case checks one property of a dataplane. It runs once for each address family, with a lab and a backend of its own.
type Case struct {
	// Name is short, in lower case with hyphens.
	Name string
	// Shows is a sentence that is true if the case passes.
	Shows string
	// Needs are the features that the backend must declare. A core case needs none.
	Needs []dataplane.Feature
	// Gateways is the number of gateways; 0 means 1.
	Gateways int
	// Untraced switches the packet trace off, for cases with many packets.
	Untraced bool
	// OneFamily means that the case runs in IPv4 only, because the family makes no difference.
	OneFamily bool
	// Waits means that the case mostly waits. It begins with the first case, and runs beside the others.
	Waits bool
	// Switches means that the case needs other backends to switch to.
	Switches bool
	Run      func(*C)
}

// Profile returns the case's profile.
func (c Case) Profile() Profile {
	if len(c.Needs) > 0 {
		return Extended
	}
	return Core
}

// Backend starts processes of one dataplane.
type Backend interface {
	// Start starts a process in a gateway's host. The process logs to log.
	Start(ctx context.Context, gateway *netlab.Namespace, log io.Writer) (Process, error)
}

// Backends are the backends of a run.
type Backends struct {
	// Tested is the tested backend, Next another build of it.
	Tested, Next Backend
	// Others are other backends, to switch to and back from.
	Others []Backend
}

// Process is a running dataplane, in a process of its own or in the test's.
type Process interface {
	dataplane.Dataplane
	// Kill ends the process like a crash, Stop in good order. The dataplane keeps its records in both cases.
	Kill() error
	Stop()
}
