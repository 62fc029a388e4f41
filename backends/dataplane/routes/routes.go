// Package routes tells a backend when its host's ways to others may have changed, so that it asks the kernel for them again.
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

// Changes notes that a route, a rule, an address or an interface has changed. The zero value has noted nothing. Due and Asked are for one goroutine at a
// time, all else is safe for concurrent use.
type Changes struct {
	noted atomic.Bool
	// pending: something was noted before the kernel was asked last. That was at asked, and took so long.
	pending bool
	asked   time.Time
	took    time.Duration
}

const (
	// seldom is how often the kernel is asked although nothing is noted.
	seldom = time.Minute
	// share is the part of the time, one of so many, that asking takes at most while changes never end.
	share = 20
)

// listenAgain is the pause before the kernel is listened to again after a failure.
const listenAgain = time.Second

// Listen notes changes until ctx ends. What was not heard while it could not listen counts as a change. failed is told why that is.
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
		case <-time.After(listenAgain):
		}
	}
}

func (c *Changes) listen(ctx context.Context) error {
	s, err := subscribe()
	if err != nil {
		return err
	}
	return c.hear(ctx, s)
}

func subscribe() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
}

// hear notes what the socket says until it fails or ctx ends, and closes it.
func (c *Changes) hear(ctx context.Context, s *nl.NetlinkSocket) error {
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

// Note notes a change.
func (c *Changes) Note() { c.noted.Store(true) }

// Due tells whether the kernel is to be asked again.
func (c *Changes) Due(now time.Time) bool {
	c.pending = c.noted.Swap(false) || c.pending
	since := now.Sub(c.asked)
	return since >= seldom || c.pending && since >= share*c.took
}

// Asked notes that the kernel was asked, from that time until now. A change that was noted in that time is due again.
func (c *Changes) Asked(from time.Time) { c.pending, c.asked, c.took = false, from, time.Since(from) }
