package lab

import "time"

// Patience is how many times as long as on an ordinary machine everything may take, and is waited for, in a lab: 1 or more, and 1 if it is not set.
// Kernels that run under emulation need more. It never makes a case judge less.
type Patience float64

// For returns how long to wait for something that an ordinary machine does in d.
func (p Patience) For(d time.Duration) time.Duration {
	return time.Duration(float64(max(p, 1)) * float64(d))
}
