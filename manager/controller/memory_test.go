package controller

import (
	"context"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/manager/convert"
	"kubelb.k8c.io/manager/convert/converttest"
)

// informed is a cache with its transforms.
type informed struct {
	client.Client
	tenants   []v1alpha1.Tenant
	addresses []v1alpha1.Addresses
	lbs       []v1alpha1.LoadBalancer
}

func (c *informed) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch l := list.(type) {
	case *v1alpha1.TenantList:
		l.Items = c.tenants
	case *v1alpha1.AddressesList:
		l.Items = c.addresses
	case *v1alpha1.LoadBalancerList:
		l.Items = c.lbs
	}
	return nil
}

func kept[T kruntime.Object](t *testing.T, o T) T {
	for kind, by := range convert.Cached() {
		if reflect.TypeOf(kind) == reflect.TypeOf(o) {
			out, err := by.Transform(o)
			require.NoError(t, err)
			return out.(T)
		}
	}
	return o
}

// Other memory of the controllers in bytes: the program without tenants, and the start of a new leader (docs/install.md).
const (
	ofProgram  = 50_000_000
	ofANewBook = 114_000_000
)

// Only a few objects of each kind are measured at a time: all of them together would make this test slow.
func TestTheDefaultMemoryOfTheControllersIsEnoughForTwoTenantsAtTheirLimits(t *testing.T) {
	const tenants, lbs, lists = 2, 20, 2
	c := &informed{}
	f := &targetFilter{client: c, addresses: &addressAllocator{}}
	for tenant := range tenants {
		c.tenants = append(c.tenants, *converttest.Tenant(tenant))
	}
	before := heap()
	grown := func() int64 {
		require.NoError(t, f.refresh(t.Context()))
		now := heap()
		by := now - before
		before = now
		return by
	}
	grown()
	for tenant := range tenants {
		for n := range lbs {
			c.lbs = append(c.lbs, *kept(t, converttest.LoadBalancer(tenant, n)))
		}
	}
	lb := grown() / (tenants * lbs)
	for tenant := range tenants {
		for n := range lists {
			c.addresses = append(c.addresses, *kept(t, converttest.Addresses(tenant, n)))
		}
	}
	list := grown() / (tenants * lists)
	runtime.KeepAlive(c)
	runtime.KeepAlive(f)

	tenant := converttest.LoadBalancers*lb + converttest.AddressLists*list
	t.Logf("%d kB for a LoadBalancer, %d kB for Addresses, %d MB for a tenant", lb>>10, list>>10, tenant>>20)
	require.Less(t, tenants*tenant+ofProgram+ofANewBook, defaultMemory(t)*9/10, "of which Go's heap has nine tenths")
}

// defaultMemory returns the memory limit in the chart, in bytes.
func defaultMemory(t *testing.T) int64 {
	text, err := os.ReadFile("../../deploy/charts/kubelb-manager/values.yaml")
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^controller:[^$]*?limits: \{memory: (\d+)Mi\}`).FindSubmatch(text)
	require.NotNil(t, found)
	mebibytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	require.NoError(t, err)
	return mebibytes << 20
}
