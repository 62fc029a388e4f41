package install

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"kubelb.k8c.io/tools/cluster"
)

// load asks the Service again and again from the client's host, on a connection that is kept, and on a new one each time.
type load struct {
	address string
	ctx     context.Context
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	counts counts
}

// counts are what clients saw.
type counts struct {
	Kept, Broken, New, Failed int
	Slowest                   time.Duration
	First                     error
}

// patience is that of a client.
const patience = 5 * time.Second

func startLoad(ctx context.Context, address string) *load {
	l := &load{address: address}
	l.ctx, l.stop = context.WithCancel(ctx)
	l.done.Go(l.keep)
	l.done.Go(l.renew)
	return l
}

// end ends the load and tells what came of it.
func (l *load) end() counts {
	l.stop()
	l.done.Wait()
	return l.counts
}

func (l *load) keep() {
	for l.ctx.Err() == nil {
		c, err := l.dial()
		for err == nil && l.ctx.Err() == nil {
			if err = ask(c); err == nil {
				l.count(func(c *counts) { c.Kept++ })
			}
			l.pause(10 * time.Millisecond)
		}
		if c != nil {
			c.Close()
		}
		if err != nil && l.ctx.Err() == nil {
			l.count(func(c *counts) { c.Broken++; c.note(fmt.Errorf("a connection that is kept: %w", err)) })
			l.pause(10 * time.Millisecond)
		}
	}
}

func (l *load) renew() {
	for ; l.ctx.Err() == nil; l.pause(10 * time.Millisecond) {
		begin := time.Now()
		c, err := l.dial()
		if err == nil {
			err = ask(c)
			c.Close()
		}
		if l.ctx.Err() != nil {
			return
		}
		l.count(func(c *counts) {
			c.New++
			c.Slowest = max(c.Slowest, time.Since(begin))
			if err != nil {
				c.Failed++
				c.note(fmt.Errorf("a new connection: %w", err))
			}
		})
	}
}

func (c *counts) note(err error) {
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
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	return lab.Client.DialContext(ctx, "tcp", l.address)
}

func ask(c net.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := cluster.AskHostname(ctx, c)
	return err
}
