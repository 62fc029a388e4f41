package envoy

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"kubelb.k8c.io/backends/dataplane/hostflows"
	"kubelb.k8c.io/core/model"
)

// answerTime is how long answers to datagrams may be on their way.
const answerTime = 500 * time.Millisecond

// drain refuses new flows and waits for connections to end, at most for the time that is set.
func (b *Backend) drain(ctx context.Context) error {
	if len(b.state.frontends) == 0 || !b.serving {
		return nil
	}
	if err := b.guard.refuseNew(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.closeTime)
	defer cancel()
	for begun := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		if b.guard.layout == yielding {
			if err := forgetFlows(b.state.frontends); err != nil {
				return err
			}
		}
		open, err := b.connections()
		if err != nil {
			return err
		}
		if open == 0 && time.Since(begun) >= answerTime {
			return nil
		}
	}
}

// connections is how many clients have, with this Envoy and with those that it has replaced and which have not ended yet.
func (b *Backend) connections() (open int, err error) {
	established, err := tcpSockets(tcpEstablished)
	if err != nil {
		return 0, err
	}
	for key := range b.state.frontends {
		if key.Protocol == model.TCP {
			open += established[netip.AddrPortFrom(key.VIP, key.Port)]
		}
	}
	return open, nil
}

// forgetFlows has connection tracking forget the flows between clients and Envoy: whatever comes next on them is as good as
// new, to a backend that has taken over, or refused. Flows that another backend rewrites are not touched.
func forgetFlows(frontends map[model.FrontendKey]model.Frontend) error {
	var errs []error
	for _, v4 := range []bool{true, false} {
		errs = append(errs, hostflows.EachTracked(v4, func(f *hostflows.Flow) bool { return isOurs(frontends, f) }))
	}
	return errors.Join(errs...)
}

// isOurs reports whether a flow is one of the frontends that nobody rewrites, begun by the client or, after its entry was lost, by an answer.
func isOurs(frontends map[model.FrontendKey]model.Frontend, f *hostflows.Flow) bool {
	if f.VIP != f.Endpoint || f.Client != f.Answered {
		return false
	}
	_, there := frontends[f.Frontend()]
	_, back := frontends[model.FrontendKey{VIP: f.Client, Protocol: f.Protocol, Port: f.ClientPort}]
	return there || back
}

// Close leaves Envoy as it is, or with purge lets connections end for a while, ends it and removes everything.
func (b *Backend) Close(ctx context.Context, purge bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.xds == nil || b.state == nil {
		return nil
	}
	if !b.closed {
		b.closed = true
		if b.serving {
			close(b.stop)
		}
		b.xds.close()
		if err := errors.Join(b.state.close(), b.affinity.close(), b.guard.asking.close()); err != nil {
			return err
		}
	}
	if !purge {
		return nil
	}
	if err := b.drain(ctx); err != nil {
		return err
	}
	// Envoy ends before the guard, so that clients hear of it; what connection tracking remembers then is nobody's.
	if err := errors.Join(b.dir.Stop(ctx), b.guard.remove(), forgetFlows(b.state.frontends), os.RemoveAll(string(b.dir))); err != nil {
		return err
	}
	b.state = nil
	return nil
}
