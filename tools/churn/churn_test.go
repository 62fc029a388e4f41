package churn

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
)

func TestABrokenLongConnectionIsAFailure(t *testing.T) {
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
		a := &requester{dial: new(net.Dialer).DialContext, address: server.Listener.Addr().String(), keep: keep}
		defer a.close()
		for range 3 {
			require.NoError(t, a.request(t.Context()))
		}
		if !keep {
			require.Equal(t, 3, a.dials)
			continue
		}
		require.Equal(t, 1, a.dials)
		(<-seen).Close()
		require.Error(t, a.request(t.Context()))
		require.NoError(t, a.request(t.Context()))
		require.Equal(t, 2, a.dials)
	}
}

func TestGrowingSizesAreNamed(t *testing.T) {
	early := Sizes{"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 120}
	for name, late := range map[string]Sizes{
		"":                                          {"manager KiB": 120000, "manager descriptors": 24, "manager goroutines": 96, "nftables lines": 122},
		"manager KiB: 100000, then 124000":          {"manager KiB": 124000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 120},
		"manager descriptors: 20, then 25":          {"manager KiB": 100000, "manager descriptors": 25, "manager goroutines": 80, "nftables lines": 120},
		"manager goroutines: 80, then 97":           {"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 97, "nftables lines": 120},
		"nftables lines: 120, then 123":             {"manager KiB": 100000, "manager descriptors": 20, "manager goroutines": 80, "nftables lines": 123},
		"kubelb-backend-nftables KiB: 0, then 9999": {"kubelb-backend-nftables KiB": 9999},
	} {
		r := Result{Early: early, Late: late}
		if name == "" {
			require.Empty(t, r.Grown())
			require.NoError(t, r.Err())
			continue
		}
		require.Equal(t, []string{name}, r.Grown())
		require.ErrorContains(t, r.Err(), "growth: "+name)
	}
	require.ErrorContains(t, Result{Broken: 1}.Err(), "broke 1 times")
	require.ErrorContains(t, Result{Left: []string{"tables: table ip kubelb"}}.Err(), "left behind: tables")
}

func TestMediansAreOfEachSize(t *testing.T) {
	require.Equal(t, Sizes{"a": 2, "b": 5}, medians([]Sizes{{"a": 1, "b": 5}, {"a": 9, "b": 5}, {"a": 2, "b": 4}}))
}

func TestAnAlarmIsFalseIfAClientCanConnect(t *testing.T) {
	failing := func(name, address string) v1alpha1.LoadBalancer {
		lb := v1alpha1.LoadBalancer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.LoadBalancerSpec{Ports: []v1alpha1.LoadBalancerPort{{Port: 80}, {Port: 53, Protocol: corev1.ProtocolUDP}}}}
		lb.Status.Addresses = []v1alpha1.AllocatedAddress{{Address: address}}
		lb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionServed, Status: metav1.ConditionFalse, Message: "refused"}}
		return lb
	}
	dials := map[string]int{}
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		if dials[network+" "+address]++; address == "192.0.2.2:80" && dials[network+" "+address] == connectsPerPort {
			return nil, errors.New("connection refused")
		}
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		return here, nil
	}
	l := &alarmChecker{checked: map[string]bool{}}
	for range 2 {
		l.check(t.Context(), []v1alpha1.LoadBalancer{failing("a", "192.0.2.1"), failing("b", "192.0.2.2"), {ObjectMeta: metav1.ObjectMeta{Name: "c"}}}, dial)
	}
	require.Equal(t, []string{"a: 00:00:00: refused"}, l.denied)
	require.Equal(t, []string{"b: 00:00:00: refused; the client: connection refused"}, l.confirmed)
	require.Equal(t, map[string]int{"tcp 192.0.2.1:80": connectsPerPort, "tcp 192.0.2.2:80": connectsPerPort}, dials, "each alarm is checked once")
}
