package churn

import (
	"context"
	"net"
	"time"

	"kubelb.k8c.io/conformance/netlab"
	"kubelb.k8c.io/tools/cluster"
)

// requestTimeout is the timeout of a request.
const requestTimeout = 5 * time.Second

// requester sends HTTP requests from a host.
type requester struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string
	// keep means that all requests use one connection.
	keep  bool
	conn  net.Conn
	dials int
}

func newRequester(from *netlab.Namespace, address string, keep bool) *requester {
	return &requester{dial: from.DialContext, address: net.JoinHostPort(address, "80"), keep: keep}
}

// String names the kind of connection.
func (a *requester) String() string {
	if a.keep {
		return "the long connection"
	}
	return "a new connection"
}

func (a *requester) request(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if a.conn == nil {
		a.dials++
		conn, err := a.dial(ctx, "tcp", a.address)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	keepAlive, err := cluster.AskHostname(ctx, a.conn)
	if !keepAlive || !a.keep {
		a.close()
	}
	return err
}

// close ends the connection, if there is one.
func (a *requester) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}
