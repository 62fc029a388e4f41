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

// answerTime is how long answers to datagrams may take.
const answerTime = 500 * time.Millisecond

// drain refuses new flows and waits for connections to end, for closeTime at most.
func (b *Backend) drain(ctx context.Context) error {
	if len(b.state.frontends) == 0 || !b.serving {
		return nil
	}
	if err := b.ruleset.refuseNew(); err != nil {
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
		if b.ruleset.layout == yielding {
			if err := deleteFlows(b.state.frontends); err != nil {
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

// connections counts connections of clients with this Envoy, and with former Envoys that have not ended yet.
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

// deleteFlows deletes the entries of flows between clients and Envoy from connection tracking, so that their next packets are
// new flows for another dataplane, or refused. Flows that another dataplane rewrites are kept.
func deleteFlows(frontends map[model.FrontendKey]model.Frontend) error {
	var errs []error
	for _, v4 := range []bool{true, false} {
		errs = append(errs, hostflows.EachTracked(v4, func(f *hostflows.Flow) bool { return isOwn(frontends, f) }))
	}
	return errors.Join(errs...)
}

// isOwn reports whether a flow belongs to one of the frontends and is not rewritten. Its entry may have been created by an answer.
func isOwn(frontends map[model.FrontendKey]model.Frontend, f *hostflows.Flow) bool {
	if f.VIP != f.Endpoint || f.Client != f.ReplyTo {
		return false
	}
	_, toFrontend := frontends[f.Frontend()]
	_, fromFrontend := frontends[model.FrontendKey{VIP: f.Client, Protocol: f.Protocol, Port: f.ClientPort}]
	return toFrontend || fromFrontend
}

// Close keeps Envoy running. With purge it waits a while for connections to end, ends Envoy and removes everything.
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
		if err := errors.Join(b.state.close(), b.affinity.close(), b.ruleset.redirector.close()); err != nil {
			return err
		}
	}
	if !purge {
		return nil
	}
	if err := b.drain(ctx); err != nil {
		return err
	}
	// Envoy ends before the rules are removed, so that clients get its resets. Entries of connection tracking are deleted last.
	if err := errors.Join(b.dir.Stop(ctx), b.ruleset.remove(), deleteFlows(b.state.frontends), os.RemoveAll(string(b.dir))); err != nil {
		return err
	}
	b.state = nil
	return nil
}
