package lab

import "time"

// Patience is the factor by which all timeouts of a lab are longer than on an ordinary machine. Values below 1 count as 1.
// Emulated kernels need more. It does not change what a case tests.
type Patience float64

// For returns the timeout that corresponds to d on an ordinary machine.
func (p Patience) For(d time.Duration) time.Duration {
	return time.Duration(float64(max(p, 1)) * float64(d))
}
