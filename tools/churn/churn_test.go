package churn

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAKeptConnectionThatBreaksIsAFailure(t *testing.T) {
	seen := make(chan net.Conn, 8)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			seen <- c
		}
	}
	server.Start()
	defer server.Close()

	for _, keep := range []bool{true, false} {
		a := &asker{dial: new(net.Dialer).DialContext, address: server.Listener.Addr().String(), keep: keep}
		defer a.close()
		for range 3 {
			require.NoError(t, a.ask(t.Context()))
		}
		if !keep {
			require.Equal(t, 3, a.dials)
			continue
		}
		require.Equal(t, 1, a.dials)
		(<-seen).Close()
		require.Error(t, a.ask(t.Context()))
		require.NoError(t, a.ask(t.Context()))
		require.Equal(t, 2, a.dials)
	}
}

func TestWhatGrowsIsNamed(t *testing.T) {
	early := Sizes{"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 120}
	for name, late := range map[string]Sizes{
		"":                                          {"manager KiB": 120000, "manager descriptors": 24, "manager goroutines": 88, "nftables lines": 120},
		"manager KiB: 100000, then 124000":          {"manager KiB": 124000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 120},
		"manager descriptors: 20, then 25":          {"manager KiB": 100000, "manager descriptors": 25, "manager goroutines": 80, "nftables lines": 120},
		"manager goroutines: 80, then 89":           {"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 89, "nftables lines": 120},
		"nftables lines: 120, then 121":             {"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 121},
		"kubelb-backend-nftables KiB: 0, then 9999": {"kubelb-backend-nftables KiB": 9999},
	} {
		r := Result{Early: early, Late: late}
		if name == "" {
			require.Empty(t, r.Grown())
			require.NoError(t, r.Broke())
			continue
		}
		require.Equal(t, []string{name}, r.Grown())
		require.ErrorContains(t, r.Broke(), "it grows: "+name)
	}
	require.ErrorContains(t, Result{Broken: 1}.Broke(), "broke 1 times")
	require.ErrorContains(t, Result{Left: []string{"tables: table ip kubelb"}}.Broke(), "left behind: tables")
}

func TestMediansAreOfEachSize(t *testing.T) {
	require.Equal(t, Sizes{"a": 2, "b": 5}, medians([]Sizes{{"a": 1, "b": 5}, {"a": 9, "b": 5}, {"a": 2, "b": 4}}))
}
