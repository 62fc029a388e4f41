package churn

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"kubelb.k8c.io/conformance/netlab"
)

// asker asks over HTTP from a host.
type asker struct {
	url    string
	client http.Client
	// keep: one connection for all.
	keep  bool
	dials int
}

func newAsker(from *netlab.Namespace, address string, keep bool) *asker {
	a := &asker{keep: keep, url: "http://" + net.JoinHostPort(address, "80") + "/hostname"}
	a.client = http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keep, MaxIdleConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			a.dials++
			return from.DialContext(ctx, network, address)
		}}}
	return a
}

// String names its connections.
func (a *asker) String() string {
	if a.keep {
		return "the kept connection"
	}
	return "a new connection"
}

func (a *asker) ask(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	return nil
}
