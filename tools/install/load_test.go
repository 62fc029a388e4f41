package install

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"kubelb.k8c.io/tools/cluster"
)

// load sends requests to the Service from the client's host, on a long connection and on a new connection each.
type load struct {
	address string
	ctx     context.Context
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	counts counts
}

// counts are the results of the load.
type counts struct {
	Kept, Broken, New, Failed int
	Slowest                   time.Duration
	First                     error
}

// timeout is the limit for a connection, and for a request.
const timeout = 5 * time.Second

func startLoad(ctx context.Context, address string) *load {
	l := &load{address: address}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.done.Go(l.runKept)
	l.done.Go(l.runNew)
	return l
}

// stop stops the load and returns its results.
func (l *load) stop() counts {
	l.cancel()
	l.done.Wait()
	return l.counts
}

func (l *load) runKept() {
	for l.ctx.Err() == nil {
		c, err := l.dial()
		for err == nil && l.ctx.Err() == nil {
			if err = request(c); err == nil {
				l.count(func(c *counts) { c.Kept++ })
			}
			l.pause(10 * time.Millisecond)
		}
		if c != nil {
			c.Close()
		}
		if err != nil && l.ctx.Err() == nil {
			l.count(func(c *counts) { c.Broken++; c.addError(fmt.Errorf("the long connection: %w", err)) })
			l.pause(10 * time.Millisecond)
		}
	}
}

func (l *load) runNew() {
	for ; l.ctx.Err() == nil; l.pause(10 * time.Millisecond) {
		start := time.Now()
		c, err := l.dial()
		if err == nil {
			err = request(c)
			c.Close()
		}
		if l.ctx.Err() != nil {
			return
		}
		l.count(func(c *counts) {
			c.New++
			c.Slowest = max(c.Slowest, time.Since(start))
			if err != nil {
				c.Failed++
				c.addError(fmt.Errorf("a new connection: %w", err))
			}
		})
	}
}

func (c *counts) addError(err error) {
	if c.First == nil {
		c.First = err
	}
}

func (l *load) count(change func(*counts)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.counts)
}

func (l *load) pause(d time.Duration) {
	select {
	case <-l.ctx.Done():
	case <-time.After(d):
	}
}

func (l *load) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	return lab.Client.DialContext(ctx, "tcp", l.address)
}

func request(c net.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := cluster.AskHostname(ctx, c)
	return err
}
