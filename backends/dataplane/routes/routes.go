// Package routes tells when the routes of a host may have changed, so that a program reads them again, and which endpoints are on a segment of the host.
package routes

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Changes records that a route, a rule, an address or an interface has changed. Due and MarkRead are for one goroutine at a time, the other methods are safe
// for concurrent use.
type Changes struct {
	noted atomic.Bool
	// pending is set if there was a change since the kernel was read last. asked is when that was, took how long it took.
	pending bool
	asked   time.Time
	took    time.Duration
}

const (
	// maxAge is how often the kernel is read without a change.
	maxAge = time.Minute
	// costFactor bounds the time that reading takes if there are changes all the time: to a part of 1/costFactor.
	costFactor = 20
)

// retryPause is the pause before the next attempt to subscribe to the kernel's events.
const retryPause = time.Second

// Listen records changes until ctx ends. It calls failed with the error if it cannot listen. Missed events count as a change.
func (c *Changes) Listen(ctx context.Context, failed func(error)) {
	for {
		err := c.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		failed(fmt.Errorf("listen for changes of routes: %w", err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPause):
		}
	}
}

func (c *Changes) listen(ctx context.Context) error {
	s, err := subscribe()
	if err != nil {
		return err
	}
	return c.receive(ctx, s)
}

func subscribe() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
}

// receive records the events of the socket until the socket fails or ctx ends, and closes it.
func (c *Changes) receive(ctx context.Context, s *nl.NetlinkSocket) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.Close()
		close(closed)
	})
	defer func() {
		if stop() {
			s.Close()
			return
		}
		<-closed
	}()
	for {
		c.Note() // what came before it was listened as well
		// More than the socket has room for is a change, too.
		if _, _, err := s.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// Note records a change.
func (c *Changes) Note() { c.noted.Store(true) }

// Due reports whether the kernel has to be read again.
func (c *Changes) Due(now time.Time) bool {
	c.pending = c.noted.Swap(false) || c.pending
	since := now.Sub(c.asked)
	return since >= maxAge || c.pending && since >= costFactor*c.took
}

// MarkRead records that the kernel was read, from that time until now. A change since then makes it due again.
func (c *Changes) MarkRead(from time.Time) {
	c.pending, c.asked, c.took = false, from, time.Since(from)
}
