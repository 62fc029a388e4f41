package main

import (
	"net/http"
	"sync/atomic"
	"time"
)

// hubClock is the clock of a cluster, to a second, by the header Date of its API server's last answer. Leases are judged by it: the clock of an operator's machine
// may be wrong.
type hubClock struct{ apart atomic.Int64 } // by how many nanoseconds the cluster's clock is ahead

// now is the cluster's time. Before the first answer, and for a nil clock, it is the time of this machine.
func (c *hubClock) now() time.Time {
	if c == nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(c.apart.Load()))
}

// listen returns a transport that sets the clock by each answer.
func (c *hubClock) listen(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil {
			return response, err
		}
		if at, failed := http.ParseTime(response.Header.Get("Date")); failed == nil {
			c.apart.Store(int64(time.Until(at)))
		}
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
