package envoy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
)

func TestInvalidOptionsAreRefusedWithAdvice(t *testing.T) {
	s, err := parseOptions(map[string]string{"envoy-path": "/opt/envoy", "table": "blue", "concurrency": "4", "drain-time": "10m", "close-time": "0s", "idle-timeout": "2h", "udp-idle-timeout": "30s", "memory-mib": "512"})
	require.NoError(t, err)
	require.Equal(t, settings{envoy: "/opt/envoy", table: "blue", concurrency: 4, drainTime: 10 * time.Minute, memoryMiB: 512, timeouts: timeouts{2 * time.Hour, 30 * time.Second}}, s)
	s, err = parseOptions(nil)
	require.NoError(t, err)
	require.Equal(t, defaults(), s)
	for option, value := range map[string]string{"concurrency": "0", "drain-time": "soon", "close-time": "-1s", "idle-timeout": "7", "udp-idle-timeout": "0s", "memory-mib": "2Gi", "colour": "blue"} {
		_, err := parseOptions(map[string]string{option: value})
		_, asked := (&Backend{}).Preflight(t.Context(), dataplane.Config{Options: map[string]string{option: value}})
		require.Equal(t, err, asked, "preflight refuses the same options as a start")
		require.ErrorContains(t, err, fmt.Sprintf("backend option %s=%s: ", option, value))
	}
}

// script returns a program that answers --version and fails otherwise.
func script(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	text := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && echo '%s' && exit\necho 'cannot run here' >&2\nexit 3\n", version)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
	return path
}

func TestAMissingOrOldEnvoyIsRefusedWithAdvice(t *testing.T) {
	_, err := findEnvoy(t.Context(), "/nowhere/envoy")
	require.ErrorContains(t, err, "install one, or name it with --backend-option envoy-path=/path/to/envoy")
	_, err = findEnvoy(t.Context(), script(t, "envoy  version: dc2d3098ae5641555f15c71d5bb5ce0060a8015c/1.36.2/Clean/RELEASE/BoringSSL"))
	require.ErrorContains(t, err, "is Envoy 1.36.2; the Envoy dataplane needs 1.39 or later")
	_, err = findEnvoy(t.Context(), script(t, "nginx version: 1.27"))
	require.ErrorContains(t, err, "does not print a version of Envoy")
	_, err = findEnvoy(t.Context(), "/bin/false")
	require.ErrorContains(t, err, "/bin/false --version: exit status 1")
	good := script(t, "envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL")
	found, err := findEnvoy(t.Context(), good)
	require.NoError(t, err)
	require.Equal(t, good, found)
}
