package churn

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"kubelb.k8c.io/conformance/netlab"
)

// mostWait is how long an answer may take.
const mostWait = 5 * time.Second

// asker asks over HTTP from a host. It has its connections itself: net/http's Transport dials anew, without a word, when one has broken,
// and when a busy host lets it hear of an answer before it hears that the request was written.
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
	goesOn, err := a.exchange(ctx)
	if !goesOn || !a.keep {
		a.close()
	}
	return err
}

// exchange asks on the connection that there is. goesOn: another request may follow on it.
func (a *asker) exchange(ctx context.Context) (goesOn bool, err error) {
	conn := a.conn
	inTime := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer inTime()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.address+"/hostname", nil)
	if err != nil {
		return false, err
	}
	if err := request.Write(conn); err != nil {
		return false, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return false, err
	}
	if response.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %s", response.Status)
	}
	return !response.Close, nil
}

// close ends the connection, if there is one.
func (a *asker) close() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}
