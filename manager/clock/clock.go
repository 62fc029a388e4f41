// Package clock has a clock that goes on while the machine is suspended, for leases.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine started (CLOCK_BOOTTIME, clock_gettime(2)).
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // each Linux since 2.6.39 has this clock
	}
	return time.Duration(t.Nano())
}
