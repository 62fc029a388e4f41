package manager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// With a name that is no valid label, the gateway would never get its Lease.
func TestAGatewayWithAnInvalidNameDoesNotStart(t *testing.T) {
	for name, says := range map[string]string{"": "--gateway-name= is not valid", "GW_1": "RFC 1123", strings.Repeat("a", 64): "must be no more than 63"} {
		err := Run(t.Context(), []string{"--controller=false", "--gateway-name=" + name}, io.Discard, io.Discard)
		require.ErrorContains(t, err, says)
		require.ErrorContains(t, err, "a label of its Lease")
	}
	require.NoError(t, checkGatewayName("node-1.example.com"))
}

func TestInterfacesMayBeNamedWithBlanks(t *testing.T) {
	for flag, names := range map[string][]string{"": nil, "eth0": {"eth0"}, "eth0,p0": {"eth0", "p0"}, "eth0, p0": {"eth0", "p0"}, " eth0 ,, p0 ,": {"eth0", "p0"}} {
		require.Equal(t, names, (&options{interfaces: flag}).announceInterfaces(), "%q", flag)
	}
}

func TestNodesAreNeverTargetsUnlessTheAPIServerForbidsToReadThem(t *testing.T) {
	for name, c := range map[string]struct {
		answer error
		reads  bool
		logs   string
	}{
		"they can be read":       {nil, true, ""},
		"it is forbidden":        {apierrors.NewForbidden(corev1.Resource("nodes"), "", errors.New("no rule")), false, "cannot read the management cluster's Nodes, so tenants may target them"},
		"nobody knows, at first": {context.DeadlineExceeded, true, "cannot check whether the management cluster's Nodes can be read, and waits until they can"},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			reader := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
				return c.answer
			}}).Build()
			require.Equal(t, c.reads, readsNodes(t.Context(), reader, slog.New(slog.NewTextHandler(&logged, nil))))
			if c.logs == "" {
				require.Empty(t, logged.String())
			}
			require.Contains(t, logged.String(), c.logs)
		})
	}
}
