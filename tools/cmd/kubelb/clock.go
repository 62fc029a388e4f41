package main

import (
	"net/http"
	"sync/atomic"
	"time"
)

// hubClock tells what time it is for a cluster, to a second, by what its API has answered last: Leases are judged by it, and the clock of an operator's
// machine may be wrong.
type hubClock struct{ apart atomic.Int64 } // in ns: by how much the cluster's is ahead

// now is by the own clock where nobody listens.
func (c *hubClock) now() time.Time {
	if c == nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(c.apart.Load()))
}

// listen has the clock be told of answers.
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
