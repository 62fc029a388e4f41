package manager

import (
	"errors"
	"log/slog"
	"math"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/stretchr/testify/require"
)

func TestTheMemoryLimitOfGoFollowsTheContainer(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	of := func(gateway bool, limit memlimit.Provider) int64 {
		debug.SetMemoryLimit(math.MaxInt64)
		o := options{controller: true, gateway: gateway}
		o.limitMemory(limit, slog.New(slog.DiscardHandler))
		return debug.SetMemoryLimit(-1)
	}
	container := memlimit.Limit(512 << 20)
	require.EqualValues(t, 512<<20*9/10, of(false, container), "only the controllers run in this container")
	require.EqualValues(t, 256<<20, of(true, container), "the rest is for the dataplane")
	unlimited := func() (uint64, error) { return 0, memlimit.ErrNoLimit }
	unknown := func() (uint64, error) { return 0, errors.New("there are no control groups") }
	require.EqualValues(t, math.MaxInt64, of(false, unlimited))
	require.EqualValues(t, math.MaxInt64, of(false, unknown), "no control groups are no error")
	t.Setenv("GOMEMLIMIT", "100MiB")
	require.EqualValues(t, math.MaxInt64, of(false, container), "GOMEMLIMIT takes precedence")
}
