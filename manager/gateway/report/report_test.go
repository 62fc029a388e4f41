package report

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
	"kubelb.k8c.io/manager/announce"
	"kubelb.k8c.io/manager/gateway/driver"
	"kubelb.k8c.io/manager/gateway/driver/drivertest"
	"kubelb.k8c.io/manager/heartbeat"
)

// noAddresses ignores all addresses.
type noAddresses struct{}

func (noAddresses) SetTenant(netip.Addr, string) {}
func (noAddresses) Add(netip.Addr)               {}
func (noAddresses) Remove(netip.Addr)            {}

// driverTest is a driver on a host, with its model.
type driverTest struct {
	*driver.Driver
	*drivertest.Host
	t   *testing.T
	hub *translate.Translator
	// broken is the error of each start of the plugin.
	broken error
}

func newDriverTest(t *testing.T) *driverTest {
	d := &driverTest{Host: drivertest.NewHost(t), t: t, hub: translate.NewTranslator()}
	d.Driver = driver.New(driver.Options{Model: d.hub, Addresses: noAddresses{}, Observer: NewMetrics(), Log: slog.New(slog.DiscardHandler),
		Redirect: func(netip.Addr) model.Redirect { return model.Redirect{} },
		Plugin:   driver.Plugin{Path: "kubelb-backend-fake", Config: dataplane.Config{StateDir: t.TempDir(), Options: drivertest.Options(d.Dir)}},
		Load: func(plugin.Options) (driver.Process, error) {
			if d.broken != nil {
				return nil, d.broken
			}
			return d.Start(), nil
		}})
	t.Cleanup(d.Driver.Stop)
	return d
}

// ready syncs the model at the version, and returns the condition Ready.
func (d *driverTest) ready(version uint64) metav1.Condition {
	d.t.Helper()
	time.Sleep(time.Until(d.RetryAt()))
	d.Sync(d.t.Context(), d.hub.Flush().Model, version)
	return *meta.FindStatusCondition(New(State{Driver: d.Driver}, time.Now()).Conditions, v1alpha1.ConditionReady)
}

func TestAGatewayIsReadyWhileItsDataplaneHoldsTheModel(t *testing.T) {
	d := newDriverTest(t)
	c := *meta.FindStatusCondition(New(State{Driver: d.Driver}, time.Now()).Conditions, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, "BackendRestarting", c.Reason, "the plugin was not started yet")
	d.broken = errors.New("there is no such binary")
	c = d.ready(1)
	require.Equal(t, metav1.ConditionFalse, c.Status)
	require.Equal(t, "BackendFailed", c.Reason)
	require.Equal(t, "there is no such binary", c.Message)
	d.broken = nil
	d.Add(drivertest.Module)
	c = d.ready(1)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, "InSync", c.Reason)
	d.Driver.Stop()
	c = *meta.FindStatusCondition(New(State{Driver: d.Driver}, time.Now()).Conditions, v1alpha1.ConditionReady)
	require.Equal(t, "BackendRestarting", c.Reason)
}

func TestARefusedRecordIsReportedAndLeavesTheGatewayReady(t *testing.T) {
	d := newDriverTest(t)
	d.Add(drivertest.Module)
	require.Equal(t, "InSync", d.ready(1).Reason)
	d.Kernel.Refuse(func(string) string { return "full" })
	d.hub.SetTenant(translate.Tenant{Name: "a", BackendCIDRs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	d.hub.SetLoadBalancer(translate.LoadBalancer{ObjectName: model.ObjectName{Namespace: "tenant-a", Name: "lb"}, Type: "LoadBalancer", VIPs: []netip.Addr{vip},
		Addresses: []translate.Address{{IP: "198.51.100.1"}}, Ports: []translate.Port{{Number: 80}}, EndpointPorts: []translate.Port{{Number: 30080}}})
	d.Sync(t.Context(), d.hub.Flush().Model, 2)
	r := New(State{Driver: d.Driver}, time.Now())
	c := meta.FindStatusCondition(r.Conditions, v1alpha1.ConditionReady)
	require.Equal(t, metav1.ConditionTrue, c.Status)
	require.Equal(t, "SomeRecordsFailed", c.Reason)
	require.NotEmpty(t, r.Failures)
	require.Equal(t, v1alpha1.GatewayFailure{LoadBalancer: "tenant-a/lb", Record: "frontend TCP 203.0.113.1:80", Message: "full"}, r.Failures[0])
	require.Zero(t, r.Frontends)
	require.Equal(t, "2", r.AppliedResourceVersion, "the dataplane holds all that it can take, and failures name the rest")
}

func TestOnlyAnAnnouncedVersionIsReportedAsAnnounced(t *testing.T) {
	d := newDriverTest(t)
	d.Add(drivertest.Module)
	d.ready(7)
	r := New(State{Driver: d.Driver, Served: true}, time.Now())
	require.True(t, r.Served)
	require.Equal(t, "7", r.AppliedResourceVersion)
	require.Empty(t, r.AnnouncedResourceVersion)
	require.Equal(t, "7", New(State{Driver: d.Driver, AllAnnounced: true}, time.Now()).AnnouncedResourceVersion)
	d.Driver.Stop()
	r = New(State{Driver: d.Driver, AllAnnounced: true}, time.Now())
	require.Empty(t, r.AppliedResourceVersion, "the object keeps its version")
	require.Empty(t, r.AnnouncedResourceVersion)
}

func TestAReportHasTheStateOfTheGateway(t *testing.T) {
	d := newDriverTest(t)
	d.Add(drivertest.Module)
	d.ready(1)
	r := New(State{Driver: d.Driver, Answered: 3, Elects: true, View: election.View{Candidates: []string{"g"}, WithoutIPv6: []string{"g"}},
		Conflicts: []announce.Conflict{{Address: vip, MAC: "02:00:00:00:00:01"}}, Refusals: []heartbeat.Refusal{{Gateway: "g2", Reason: "its clock is wrong"}},
		Conditions: []metav1.Condition{Drained(0, true)}}, time.Now())
	require.Equal(t, "fake", r.Backend.Name)
	require.Contains(t, r.Backend.Features, "limits")
	require.Len(t, r.Backend.Notes, 1)
	require.Contains(t, r.Backend.Notes[0], "state directory: ")
	require.EqualValues(t, 3, r.AnnouncedAddresses)
	require.Equal(t, []string{"g"}, r.Candidates)
	require.Equal(t, []string{"g"}, r.WithoutIPv6)
	require.Equal(t, []v1alpha1.AddressConflict{{Address: "203.0.113.1", MAC: "02:00:00:00:00:01"}}, r.Conflicts)
	var types []string
	for _, c := range r.Conditions {
		types = append(types, c.Type)
	}
	require.Equal(t, []string{v1alpha1.ConditionReady, v1alpha1.ConditionDrained, v1alpha1.ConditionAddressConflict, v1alpha1.ConditionHeartbeatsRefused}, types)
}

func TestALongCallIsReportedWhileItRuns(t *testing.T) {
	now := time.Now()
	_, is := slowCondition(nil, now)
	require.False(t, is)
	c := &driver.Call{Name: "Applied", Began: now.Add(-slowAfter + 1), Limit: time.Minute}
	_, is = slowCondition(c, now)
	require.False(t, is)
	c.Began = now.Add(-29 * time.Second)
	slow, is := slowCondition(c, now)
	require.True(t, is)
	require.Contains(t, slow.Message, "the plugin has worked on Applied for more than 20s; after 1m0s it is started again")
}

func TestOnlyTheNewestReportIsWritten(t *testing.T) {
	w := NewWriter(nil, "g", nil, nil, slog.New(slog.DiscardHandler))
	for n := range int32(3) {
		w.Publish(Report{GatewayStatus: v1alpha1.GatewayStatus{Frontends: n}})
	}
	require.EqualValues(t, 2, (<-w.Newest()).Frontends)
	require.Empty(t, w.Newest())
}
