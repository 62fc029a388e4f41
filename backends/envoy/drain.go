package envoy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowsOf(frontends))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("conntrack: %w", err))
		}
	}
	return errors.Join(errs...)
}

// flowsOf matches the flows of frontends that nobody rewrites, begun by the client or, after its entry was lost, by an answer.
type flowsOf map[model.FrontendKey]model.Frontend

var _ netlink.CustomConntrackFilter = flowsOf{}

// MatchConntrackFlow reports whether the flow was Envoy's.
func (f flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	there, back := flow.Forward, flow.Reverse
	if !there.DstIP.Equal(back.SrcIP) || !there.SrcIP.Equal(back.DstIP) {
		return false
	}
	has := func(ip net.IP, port uint16) bool {
		address, _ := netip.AddrFromSlice(ip)
		_, ok := f[model.FrontendKey{VIP: address.Unmap(), Protocol: model.Protocol(there.Protocol), Port: port}]
		return ok
	}
	return has(there.DstIP, there.DstPort) || has(there.SrcIP, there.SrcPort)
}
