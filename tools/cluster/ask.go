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

// AskHostname asks a pod's web server for the name of its host, on a connection to it, until ctx ends. goesOn: another request may follow on
// the connection. It is for clients that have their connections themselves: net/http's Transport dials anew, without a word, when one has
// broken, and when a busy host lets it hear of an answer before it hears that the request was written.
func AskHostname(ctx context.Context, c net.Conn) (goesOn bool, err error) {
	inTime := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	defer inTime()
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
