package churn

import (
	"context"
	"net"
	"time"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// mostWait is how long an answer may take.
const mostWait = 5 * time.Second

// asker asks over HTTP from a host.
type asker struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string
	// keep: one connection for all.
	keep  bool
	conn  net.Conn
	dials int
}

func newAsker(from *netlab.Namespace, address string, keep bool) *asker {
	return &asker{dial: from.DialContext, address: net.JoinHostPort(address, "80"), keep: keep}
}

// String names its connections.
func (a *asker) String() string {
	if a.keep {
		return "the kept connection"
	}
	return "a new connection"
}

func (a *asker) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mostWait)
	defer cancel()
	if a.conn == nil {
		a.dials++
		conn, err := a.dial(ctx, "tcp", a.address)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	goesOn, err := cluster.AskHostname(ctx, a.conn)
	if !goesOn || !a.keep {
		a.close()
	}
	return err
}

// close ends the connection, if there is one.
func (a *asker) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}
