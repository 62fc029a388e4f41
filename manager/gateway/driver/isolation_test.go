package driver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/backlog"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// Tenants change their objects while the dataplane is sent changes, ends, and refuses records, as the records of hostile tenants make it do. At each
// step:
//   - A change of an honest tenant is in the next batch. If it was in a batch that ended the dataplane, it is in a batch within the patience of each record.
//   - The dataplane ends at most twice for a record.
//   - Reported failures, and namespaces with unlisted failures, belong to hostile tenants.
//   - The dataplane holds the records of an honest tenant, and nothing else at its addresses, unless this tenant is reported as behind.
func TestATenantIsNeverBehindAndNeverFailsBecauseOfAnotherTenant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newIsolationTest(t)
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			w.step()
		}
		for range 5000 {
			if w.driver.backlog.Empty() && !w.ended {
				break
			}
			w.work()
		}
		require.True(t, w.driver.backlog.Empty(), "the backlog does not become empty")
		w.requireIsolation()
	})
}

// Node ports that make the dataplane end, or refuse a frontend. Only hostile tenants use them.
const (
	usualPort    = 30000
	endingPort   = 30666
	refusedPort  = 30667
	hostilePorts = 150
)

// isolationTest is a driver with its model, and a simulated dataplane.
type isolationTest struct {
	*rapid.T
	hub    *translate.Translator
	driver *Driver
	// pools and frontends are what the dataplane holds. ended: the next step reads them first.
	pools     map[model.PoolID]model.Pool
	frontends map[model.FrontendKey]model.Frontend
	ended     bool
	ends      int
	// bombs are the frontends that have ever ended the dataplane.
	bombs map[model.FrontendKey]bool
	// owner is the LoadBalancer that has an address by the rules of the controllers: another one gets the address when no gateway serves it any more.
	owner map[netip.Addr]string
	// since is the number of batches at the last change of a tenant.
	batches int
	since   map[string]int
	patient map[string]int
}

var testTenants = []string{"a", "b", "hostile", "vile"}

func isHostile(tenant string) bool { return tenant == "hostile" || tenant == "vile" }

func newIsolationTest(t *rapid.T) *isolationTest {
	w := &isolationTest{T: t, pools: map[model.PoolID]model.Pool{}, frontends: map[model.FrontendKey]model.Frontend{}, bombs: map[model.FrontendKey]bool{}, owner: map[netip.Addr]string{},
		since: map[string]int{}, patient: map[string]int{}}
	w.hub = translate.NewTranslator()
	w.driver = New(Options{Model: w.hub, Addresses: newAddressRecorder(), Observer: new(startCounter), Redirect: noRedirect, Log: slog.New(slog.DiscardHandler)})
	w.driver.runner.description, w.driver.synced = dataplane.Description{Name: "test"}, true
	w.driver.apply = w.apply
	for i, name := range testTenants {
		w.hub.SetTenant(translate.Tenant{Name: name, BackendCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}})
		w.setNodes(name, 2)
	}
	w.flush()
	return w
}

func (w *isolationTest) setNodes(tenant string, n int) {
	a := translate.Addresses{ObjectName: model.ObjectName{Namespace: "tenant-" + tenant, Name: "default"}}
	for i := range n {
		a.List = append(a.List, translate.Address{IP: netip.AddrFrom4([4]byte{10, byte(slices.Index(testTenants, tenant)), 0, byte(1 + i)}).String()})
	}
	w.hub.SetAddresses(a)
}

func (w *isolationTest) apply(_ context.Context, d model.Delta) (failed []dataplane.RecordError, err error) {
	for _, f := range d.UpsertFrontends {
		if f.TargetPort == endingPort {
			w.bombs[f.FrontendKey] = true
			err = errors.New("the process ended")
		}
	}
	if err != nil && rapid.Bool().Draw(w.T, "ends before anything") {
		return nil, err
	}
	for _, p := range d.UpsertPools {
		w.pools[p.ID] = p
	}
	for _, f := range d.UpsertFrontends {
		switch {
		case f.TargetPort == endingPort:
		case f.TargetPort == refusedPort:
			failed = append(failed, dataplane.RecordError{Frontend: f.FrontendKey, Message: "refused"})
		default:
			require.Contains(w, w.pools, f.Pool, "a frontend before its pool")
			w.frontends[f.FrontendKey] = f
		}
	}
	for _, key := range d.DeleteFrontends {
		delete(w.frontends, key)
	}
	for _, id := range d.DeletePools {
		for _, f := range w.frontends {
			require.NotEqual(w, id, f.Pool, "a pool goes that %s is on", f.FrontendKey)
		}
		delete(w.pools, id)
	}
	return failed, err
}

func (w *isolationTest) digests() model.Digests {
	return model.Snapshot{Pools: slices.Collect(maps.Values(w.pools)), Frontends: slices.Collect(maps.Values(w.frontends))}.Digests()
}

// step changes an object of one tenant, and lets the driver work.
func (w *isolationTest) step() {
	tenant := rapid.SampledFrom(testTenants).Draw(w.T, "tenant")
	switch rapid.SampledFrom([]string{"balancer", "balancer", "gone", "nodes", "restart", "nothing"}).Draw(w.T, "change") {
	case "balancer":
		w.setLoadBalancer(tenant)
	case "gone":
		name := w.name(tenant)
		w.hub.DeleteLoadBalancer(name)
		for vip, owner := range w.owner {
			if owner == name.String() {
				delete(w.owner, vip)
			}
		}
	case "nodes":
		w.setNodes(tenant, rapid.IntRange(0, 5).Draw(w.T, "nodes"))
	case "restart":
		w.ended = true // the process of the dataplane
	}
	for range rapid.IntRange(1, 3).Draw(w.T, "batches") {
		w.work()
		w.requireIsolation()
	}
}

func (w *isolationTest) name(tenant string) model.ObjectName {
	return model.ObjectName{Namespace: "tenant-" + tenant, Name: rapid.SampledFrom([]string{"one", "second"}).Draw(w.T, "name")}
}

// setLoadBalancer requests a free address: an honest tenant with a few ports, a hostile one with many, some of them harmful.
func (w *isolationTest) setLoadBalancer(tenant string) {
	lb := translate.LoadBalancer{ObjectName: w.name(tenant), Type: "LoadBalancer", Reference: &model.ObjectName{Name: "default"}}
	vip := netip.AddrFrom4([4]byte{203, 0, 113, byte(rapid.IntRange(1, 3).Draw(w.T, "vip"))})
	if owner, taken := w.owner[vip]; taken && owner != lb.ObjectName.String() || w.served(vip, tenant) {
		return
	}
	for before, owner := range w.owner {
		if owner == lb.ObjectName.String() {
			delete(w.owner, before)
		}
	}
	w.owner[vip] = lb.ObjectName.String()
	lb.VIPs = []netip.Addr{vip}
	n, odd := int32(rapid.IntRange(1, 4).Draw(w.T, "ports")), -1
	if isHostile(tenant) {
		n = hostilePorts
		if rapid.IntRange(0, 3).Draw(w.T, "is odd") == 3 {
			odd = rapid.IntRange(0, hostilePorts-1).Draw(w.T, "odd")
		}
	}
	usual := int32(usualPort)
	if isHostile(tenant) { // three batches
		for i := range byte(10) {
			lb.VIPs = append(lb.VIPs, netip.AddrFrom4([4]byte{203, 0, 113, 50 + 50*byte(slices.Index(testTenants, tenant)) + 10*byte(len(lb.Name)%2) + i}))
		}
		usual += int32(rapid.IntRange(0, 1).Draw(w.T, "anew"))
	}
	for i := range n {
		target := usual
		if int(i) == odd {
			target = rapid.SampledFrom([]int32{endingPort, refusedPort}).Draw(w.T, "does")
		}
		lb.Ports, lb.EndpointPorts = append(lb.Ports, translate.Port{Number: 1 + i}), append(lb.EndpointPorts, translate.Port{Number: target})
	}
	w.hub.SetLoadBalancer(lb)
}

// served reports whether the dataplane still has the address for another tenant.
func (w *isolationTest) served(vip netip.Addr, tenant string) bool {
	for key, f := range w.frontends {
		if key.VIP == vip && f.Tenant != tenant {
			return true
		}
	}
	return false
}

// work does what the gateway's loop does.
func (w *isolationTest) work() {
	d, before := w.flush()
	if w.ended {
		w.driver.resyncFrom(w.digests(), 0)
		w.ended = false
	} else {
		w.driver.enqueue(d, before)
		if rapid.IntRange(0, 9).Draw(w.T, "time to retry") == 0 {
			w.driver.retry(before)
		}
	}
	if err := w.driver.sendBatch(w.Context()); err != nil {
		w.ended = true
		w.ends++
		w.driver.restartLater()
		w.driver.retryAt = w.driver.retryAt.AddDate(1, 0, 0)
		return
	}
	w.batches++
}

func (w *isolationTest) flush() (model.Delta, uint64) {
	before := w.driver.version
	w.driver.version++
	d := w.hub.Flush().Model
	w.driver.withdraw(d)
	return d, before
}

func (w *isolationTest) requireIsolation() {
	require.LessOrEqual(w, w.ends, 2*len(w.bombs), "the dataplane has ended too often")
	for record, f := range w.driver.failures {
		namespace, _, _ := strings.Cut(f.Owner, "/")
		require.Contains(w, []string{"tenant-hostile", "tenant-vile"}, namespace, "%s fails: %+v", record, f)
	}
	if w.ended {
		return // the state of the dataplane is not known, and nothing is reported
	}
	behind, known := w.driver.backlog.Behind()
	require.True(w, known, "all records of the dataplane came from this driver")
	want := w.hub.Snapshot()
	for _, tenant := range []string{"a", "b"} {
		if _, is := behind[tenant]; is {
			require.NotZero(w, w.ends, "the change of tenant %s is not in the next batch", tenant)
			w.requirePatience(tenant)
			continue
		}
		delete(w.since, tenant)
		for _, p := range want.Pools {
			if p.Tenant == tenant {
				require.Equal(w, p.Text(), w.pools[p.ID].Text(), "pool %s", p.ID)
			}
		}
		for _, f := range want.Frontends {
			if f.Tenant == tenant {
				require.Equal(w, f.Text(), w.frontends[f.FrontendKey].Text(), "%s", f.FrontendKey)
			}
		}
		for key, f := range w.frontends {
			switch owns := w.ownerOf(key.VIP) == tenant; {
			case owns && f.Tenant != tenant:
				require.Fail(w, "clients reach another tenant's nodes", "clients of %s reach %s by %s", tenant, f.Tenant, key)
			case !owns && f.Tenant == tenant:
				require.Fail(w, "a frontend is left", "%s of %s, which is not behind", key, tenant)
			}
		}
	}
}

func (w *isolationTest) ownerOf(vip netip.Addr) string {
	namespace, _, _ := strings.Cut(w.owner[vip], "/")
	return strings.TrimPrefix(namespace, "tenant-")
}

// requirePatience requires that a tenant is not behind for too many batches: each of its records waits for others only so often.
func (w *isolationTest) requirePatience(tenant string) {
	since, was := w.since[tenant]
	if !was {
		w.since[tenant] = w.batches
		return
	}
	records := 2 * 4 * 2 // the most pools and frontends of the tenant
	require.LessOrEqual(w, w.batches-since, records*backlog.SuspectDelay*len(testTenants), "tenant %s waits", tenant)
}
