package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// Loss is what clients lose while the plugin of a gateway is stopped repeatedly.
type Loss struct {
	Target, Phase string
	// Ended is how often the plugin was stopped.
	Ended int
	// Sent and Arrived are numbers of datagrams on long flows.
	Sent, Arrived int
	// Connections counts new connections with one request each, Requests counts requests on long connections.
	Connections, Requests attempts
}

// attempts counts successes and failures, and has the longest time of an attempt.
type attempts struct {
	Done, Failed int
	Longest      time.Duration
}

func (t *attempts) count(begun time.Time, err error) {
	t.Longest = max(t.Longest, time.Since(begun))
	if err != nil {
		t.Failed++
		return
	}
	t.Done++
}

// The phases, by what happens to the plugin.
const (
	Undisturbed = "undisturbed"
	Killed      = "killed (kill -9) and started again"
	Upgraded    = "replaced by another build"

	between = 500 * time.Millisecond
)

// MeasureRestarts measures, for each dataplane, what clients lose while its plugin is stopped and another one starts. next is a directory with other
// builds of the plugins.
func MeasureRestarts(ctx context.Context, o Options, next string) (losses []Loss, err error) {
	lab := netlab.New("klbench")
	defer func() { err = errors.Join(err, lab.Close()) }()
	o.Proxies = ""
	s := &setup{lab: lab, options: o}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	if err := s.build(ctx, func(t target) bool { return t.backend != "" && (!t.frames || strings.Contains(t.name, "XDP")) }); err != nil {
		return nil, err
	}
	for _, g := range s.gateways {
		for _, phase := range []string{Undisturbed, Killed, Undisturbed, Upgraded} {
			l, err := s.outlive(ctx, g, phase, next)
			if err != nil {
				return losses, fmt.Errorf("%s, %s: %w", g.name, phase, err)
			}
			losses = append(losses, l)
			fmt.Fprintf(o.Progress, "%s, %s: %d of %d datagrams lost, %d connections and %d requests failed\n", g.name, phase, l.Sent-l.Arrived, l.Sent, l.Connections.Failed, l.Requests.Failed)
		}
	}
	return losses, nil
}

// outlive measures one phase.
func (s *setup) outlive(ctx context.Context, g *gateway, phase, next string) (Loss, error) {
	l := Loss{Target: g.name, Phase: phase}
	before, err := s.counter.arrived()
	if err != nil {
		return l, err
	}
	var all sync.WaitGroup
	until := time.Now().Add(s.options.Long)
	errs := make([]error, 3)
	for i, work := range []func() error{
		func() (err error) { l.Sent, err = stream(g.to[0], until); return err },
		func() error { connect(g.to[0], until, &l.Connections); return nil },
		func() error { return requestOnLong(g.to[0], until, &l.Requests) },
	} {
		all.Go(func() { errs[i] = s.client.Do(work) })
	}
	for other := false; phase != Undisturbed && ctx.Err() == nil && time.Now().Add(2*between).Before(until); l.Ended++ {
		time.Sleep(between)
		backend := g.backend
		if other = !other; phase == Upgraded && other {
			backend = next + "/kubelb-backend-" + backend
		}
		if err := g.replace(ctx, backend, phase == Killed, s.options); err != nil {
			errs = append(errs, err)
			break
		}
	}
	all.Wait()
	after, err := s.counter.arrived()
	l.Arrived = int(after - before)
	return l, errors.Join(append(errs, err)...)
}

// replace stops the plugin and starts another one.
func (g *gateway) replace(ctx context.Context, backend string, kill bool, o Options) error {
	if kill {
		if err := g.process.Kill(); err != nil {
			return err
		}
	}
	g.process.Stop()
	g.process = nil
	return g.serve(ctx, backend, o)
}

// stream sends 16,000 datagrams a second, few enough for all queues, and returns their number.
func stream(to netip.AddrPort, until time.Time) (sent int, err error) {
	sockets, err := answeredFlows(to)
	defer closeAll(sockets)
	if err != nil {
		return sent, err
	}
	buffer := countedDatagram()
	for next := time.Now(); next.Before(until); next = next.Add(time.Millisecond) {
		time.Sleep(time.Until(next))
		for _, fd := range sockets {
			if _, err := retry(unix.Write, fd, buffer); err != nil {
				return sent, fmt.Errorf("datagram: %w", err)
			}
			sent++
		}
	}
	return sent, nil
}

// connect makes a connection every millisecond.
func connect(to netip.AddrPort, until time.Time, t *attempts) {
	buffer := make([]byte, requestSize)
	for time.Now().Before(until) {
		begun := time.Now()
		fd, err := dial(unix.SOCK_STREAM, to)
		if err == nil {
			err = errors.Join(request(fd, buffer), unix.Close(fd))
		}
		t.count(begun, err)
		time.Sleep(time.Millisecond)
	}
}

// requestOnLong sends a request every millisecond on each of eight long connections.
func requestOnLong(to netip.AddrPort, until time.Time, t *attempts) error {
	var kept []int
	defer func() {
		for _, fd := range kept {
			_ = unix.Close(fd)
		}
	}()
	for range 8 {
		fd, err := dial(unix.SOCK_STREAM, to)
		if err != nil {
			return err
		}
		kept = append(kept, fd)
	}
	buffer := make([]byte, requestSize)
	for len(kept) > 0 && time.Now().Before(until) {
		kept = slices.DeleteFunc(kept, func(fd int) bool {
			begun := time.Now()
			err := request(fd, buffer)
			t.count(begun, err)
			if err != nil {
				_ = unix.Close(fd)
			}
			return err != nil
		})
		time.Sleep(time.Millisecond)
	}
	return nil
}
