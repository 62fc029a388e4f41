package manager

import (
	"log/slog"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// ofControllers is the share of the container's memory for Go's heap if only controllers run. The rest is for memory that Go does not count.
	ofControllers = 0.9
	// ofGateway is the share if the plugin, and Envoy, run in the same container.
	ofGateway = 0.5
)

// limitMemory makes Go collect garbage before the container's memory is full, and not only when the heap has doubled. Otherwise the kernel would kill a
// process that needs only half of its memory, because of the garbage of a large list. It does not bound memory in use. GOMEMLIMIT takes precedence.
func (o *options) limitMemory(limit memlimit.Provider, log *slog.Logger) {
	part := ofControllers
	if o.gateway {
		part = ofGateway
	}
	bytes, err := memlimit.Set(memlimit.WithProvider(limit), memlimit.WithRatio(part))
	switch {
	case err != nil:
		// Outside of containers there is no limit.
		log.Debug("found no memory limit of this process's control group", "error", err)
	case bytes < math.MaxInt64:
		log.Debug("set Go's memory limit", "bytes", bytes)
	}
}
