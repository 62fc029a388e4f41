package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// AskHostname asks the web server of a pod for its hostname on this connection, until ctx ends. keepAlive reports whether another request may
// follow on the connection. It does not use the Transport of net/http, which silently connects again if a connection broke, or if it sees the
// answer before the end of the request's write on a busy host.
func AskHostname(ctx context.Context, c net.Conn) (keepAlive bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.RemoteAddr().String()+"/hostname", nil)
	if err != nil {
		return false, err
	}
	if err := request.Write(c); err != nil {
		return false, err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), request)
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
