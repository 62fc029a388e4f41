package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheClockFollowsTheManagementCluster(t *testing.T) {
	var clock *hubClock
	require.WithinDuration(t, time.Now(), clock.now(), time.Minute)
	clock = &hubClock{}
	there := time.Now().Add(-time.Hour)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", there.UTC().Format(http.TimeFormat))
	}))
	defer server.Close()
	response, err := (&http.Client{Transport: clock.observe(http.DefaultTransport)}).Get(server.URL)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.WithinDuration(t, there, clock.now(), time.Minute)
}
