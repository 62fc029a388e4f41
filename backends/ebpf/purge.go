package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

const (
	// drainTimeout is how long a purge waits for connections to end.
	drainTimeout = 5 * time.Second
	// answerDelay is how long answers to datagrams may be on their way.
	answerDelay = 500 * time.Millisecond
)

// drain leaves new flows to the host, where another dataplane may have taken over, and waits for connections to end. It returns the connections that are still open.
func (k *kernel) drain(ctx context.Context) (map[tuple]flow, error) {
	k.settings.Closing = 1
	if err := k.writeSettings(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for begun := time.Now(); ; {
		open, err := k.openConnections()
		if err != nil || len(open) == 0 && time.Since(begun) >= answerDelay {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return open, nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// openConnections returns the open TCP connections, by the tuple of the client's packets. A flow that moved from YoungFlows to Flows may have a copy in YoungFlows,
// whose state is not updated any more.
func (k *kernel) openConnections() (map[tuple]flow, error) {
	open := map[tuple]flow{}
	for _, m := range []*ebpf.Map{k.objects.Flows, k.objects.YoungFlows} {
		var key tuple
		var f flow
		entries := m.Iterate()
		for entries.Next(&key, &f) {
			if key.Protocol != unix.IPPROTO_TCP || f.State&stateReply != 0 || f.State&stateClosed != 0 {
				continue
			}
			if m == k.objects.YoungFlows && k.objects.Flows.Lookup(key, new(flow)) == nil {
				continue
			}
			open[key] = f
		}
		if err := entries.Err(); errors.Is(err, ebpf.ErrIterationAborted) {
			continue // young flows change faster than they can be read; established connections are in Flows
		} else if err != nil {
			return nil, fmt.Errorf("read flows: %w", err)
		}
	}
	return open, nil
}

// Close closes the backend. Programs and maps stay in the kernel, unless purge is set.
func (b *Backend) Close(ctx context.Context, purge bool) error {
	if b.kernel == nil {
		return nil
	}
	b.pollMu.Lock()
	defer b.pollMu.Unlock()
	var open map[tuple]flow
	var err error
	if purge {
		tracked := b.updateTracking() // another dataplane that takes over may just have started connection tracking
		open, err = b.kernel.drain(ctx)
		err = errors.Join(tracked, err)
		if len(open) > 0 {
			err = errors.Join(err, deleteFormer(open))
		}
	}
	err = errors.Join(err, b.kernel.close(purge), hostflows.Reset(ctx, endsOf(open)))
	b.kernel = nil
	return err
}

// endsOf returns the ends of connections, which are given by the tuples of the clients' packets.
func endsOf(connections map[tuple]flow) (ends []hostflows.Connection) {
	for key, f := range connections {
		at := func(a address, p port) netip.AddrPort { return netip.AddrPortFrom(a.addr(key.Family), p.number()) }
		ends = append(ends, hostflows.EndsOf(at(key.Source, key.SourcePort), at(key.Destination, key.DestinationPort), at(f.Source, f.SourcePort), at(f.Destination, f.DestinationPort),
			f.Forwarding == uint8(model.Direct))...)
	}
	return ends
}

// deleteFormer deletes what this host still has of former connections between the same ports: entries of connection tracking, and sockets of a proxy, which may stay
// for a minute after their end. Both would take packets of these connections for late packets of the former ones, and clients would get no valid answer.
func deleteFormer(connections map[tuple]flow) error {
	isOpen := func(t tuple) bool { _, open := connections[t]; return open }
	var errs []error
	for _, v4 := range []bool{true, false} {
		errs = append(errs, hostflows.EachTracked(v4, func(f *hostflows.Flow) bool {
			return isOpen(tuple{Source: addressOf(f.Client), Destination: addressOf(f.VIP), SourcePort: portOf(f.ClientPort), DestinationPort: portOf(f.VIPPort),
				Protocol: uint8(f.Protocol), Family: familyOf(f.Client)})
		}))
	}
	err := hostflows.EndSockets(func(c hostflows.Connection) bool {
		from, to := c.Remote, c.Local
		return isOpen(tuple{Source: addressOf(from.Addr()), Destination: addressOf(to.Addr()), SourcePort: portOf(from.Port()), DestinationPort: portOf(to.Port()),
			Protocol: unix.IPPROTO_TCP, Family: familyOf(from.Addr())})
	})
	if !errors.Is(err, hostflows.ErrCannotEndSockets) { // such sockets end by themselves
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
