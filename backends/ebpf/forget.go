package ebpf

import (
	"errors"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane/hostflows"
)

// forgetOlder removes what this host still knows of older connections between the same ports, from before the programs took over:
// entries of connection tracking, and sockets that a proxy left, which may linger for a minute after their end. Both would take
// packets of these connections for strays of the older ones, and leave their clients without an answer that these understand.
func forgetOlder(connections map[tuple]bool) error {
	var errs []error
	for _, v4 := range []bool{true, false} {
		errs = append(errs, hostflows.EachTracked(v4, func(f *hostflows.Flow) bool {
			return connections[tuple{Source: addressOf(f.Client), Destination: addressOf(f.VIP), SourcePort: portOf(f.ClientPort), DestinationPort: portOf(f.VIPPort),
				Protocol: uint8(f.Protocol), Family: familyOf(f.Client)}]
		}))
	}
	err := hostflows.EndSockets(func(c hostflows.Connection) bool {
		from, to := c.Remote, c.Local
		return connections[tuple{Source: addressOf(from.Addr()), Destination: addressOf(to.Addr()), SourcePort: portOf(from.Port()), DestinationPort: portOf(to.Port()),
			Protocol: unix.IPPROTO_TCP, Family: familyOf(from.Addr())}]
	})
	if !errors.Is(err, hostflows.ErrSocketsStay) { // what lingers ends by itself
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
