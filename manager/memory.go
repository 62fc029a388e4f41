package manager

import (
	"log/slog"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// ofControllers is the part of a container's memory that Go's heap may have, which is alone there. The rest is for what Go does not count.
	ofControllers = 0.9
	// ofGateway is the part of it where the dataplane's plugin, and Envoy, run beside the gateway.
	ofGateway = 0.5
)

// limitMemory has Go collect garbage before the container is full, instead of when the heap has doubled. Garbage of a large list would have the kernel end a
// process that needs half of its memory. It bounds nothing: what is in use stays. GOMEMLIMIT comes first.
func (o *options) limitMemory(limit memlimit.Provider, log *slog.Logger) {
	part := ofControllers
	if o.gateway {
		part = ofGateway
	}
	bytes, err := memlimit.Set(memlimit.WithProvider(limit), memlimit.WithRatio(part))
	switch {
	case err != nil:
		// As without one: outside of containers there is none.
		log.Debug("no memory limit of this process's control group was found", "error", err)
	case bytes < math.MaxInt64:
		log.Debug("garbage is collected before memory is full", "bytes", bytes)
	}
}
