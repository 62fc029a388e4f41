// Package cases holds what a dataplane must show, one case a file. A case drives a backend through the plugin contract and
// judges it by packets alone.
package cases

import (
	"context"
	"io"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/netlab"
)

// Profile says of whom a case may be expected.
type Profile string

const (
	// Core is what every dataplane does.
	Core Profile = "core"
	// Extended is what a dataplane declares as a feature.
	Extended Profile = "extended"
)

// Case is one thing to show. It runs once for each address family, each time in a lab and with a backend of its own.
type Case struct {
	// Name is short, in lower case with hyphens.
	Name string
	// Shows is what holds when the case passes, as a sentence.
	Shows string
	// Needs are features without which the case does not apply; a case of the core has none.
	Needs []dataplane.Feature
	// Gateways run the backend: 1, unless set.
	Gateways int
	// Untraced: so many packets pass that a trace would slow it down.
	Untraced bool
	// OneFamily: the family makes no difference; it runs in IPv4.
	OneFamily bool
	// Switches: other backends are needed, to switch to.
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

// Backend starts dataplanes of one kind.
type Backend interface {
	// Start runs one in a gateway's host. log takes what it writes.
	Start(ctx context.Context, gateway *netlab.Namespace, log io.Writer) (Process, error)
}

// Backends take part in a run.
type Backends struct {
	// Judged is what the run is about, Next another build of it.
	Judged, Next Backend
	// Others are backends of other kinds, to switch to and back from.
	Others []Backend
}

// Process is a dataplane that runs, wherever that is.
type Process interface {
	dataplane.Dataplane
	// Kill ends it as a crash would, Stop in good order. What it holds stays in either case.
	Kill() error
	Stop()
}
