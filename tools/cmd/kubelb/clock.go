package main

import (
	"net/http"
	"sync/atomic"
	"time"
)

// hubClock is the clock of a cluster, by the header Date of the API server's last answer, to a second. It decides whether Leases have expired, because the clock of
// the operator's machine may be wrong.
type hubClock struct{ offset atomic.Int64 } // by how many nanoseconds the cluster's clock is ahead

// now returns the cluster's time. Before the first answer, and for a nil clock, it returns the time of this machine.
func (c *hubClock) now() time.Time {
	if c == nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(c.offset.Load()))
}

// observe returns a transport that sets the clock by each answer.
func (c *hubClock) observe(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil {
			return response, err
		}
		if at, failed := http.ParseTime(response.Header.Get("Date")); failed == nil {
			c.offset.Store(int64(time.Until(at)))
		}
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
