package controller

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelb.k8c.io/api/v1alpha1"
)

// apiServer has many LoadBalancers, and makes each one when it is read: as large as a tenant may write it.
type apiServer struct {
	client.Reader
	lbs int
	// expire decides at which requests the version of the list has expired.
	expire func(request int) bool
	// requests is the number of requests, largest the greatest number of objects in an answer, live the largest heap at a request.
	requests, largest int
	live              int64
}

func (s *apiServer) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	lbs, is := list.(*v1alpha1.LoadBalancerList)
	if !is {
		return s.Reader.List(ctx, list, options...)
	}
	s.requests++
	s.live = max(s.live, heap())
	if s.expire != nil && s.expire(s.requests) {
		return apierrors.NewResourceExpired("the provided continue parameter is too old")
	}
	var o client.ListOptions
	o.ApplyOptions(options)
	first, _ := strconv.Atoi(o.Continue)
	for i := first; i < s.lbs && (o.Limit == 0 || i < first+int(o.Limit)); i++ {
		lbs.Items = append(lbs.Items, largest(i))
	}
	if s.largest = max(s.largest, len(lbs.Items)); first+len(lbs.Items) < s.lbs {
		lbs.Continue = strconv.Itoa(first + len(lbs.Items))
	}
	return nil
}

// largest returns a LoadBalancer with 203.0.113.N that has as many targets as the schema allows, and half a megabyte of fields that no cache keeps.
func largest(i int) v1alpha1.LoadBalancer {
	lb := recorded(fmt.Sprintf("lb-%03d", i), 0, fmt.Sprintf("203.0.113.%d", i+1))
	lb.Annotations = map[string]string{"more": strings.Repeat("x", 1<<19)}
	targets := make([]v1alpha1.EndpointAddress, 5000)
	for n := range targets {
		targets[n].IP = fmt.Sprintf("198.51.%d.%d", n>>8, n&255)
	}
	lb.Spec.Endpoints = []v1alpha1.LoadBalancerEndpoints{{Addresses: targets}}
	return *lb
}

// heap returns the number of reachable bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func bookOfServer(t *testing.T, s *apiServer) *addressAllocator {
	s.Reader = allocatorOf(t, public()).reader
	return &addressAllocator{reader: s}
}

func TestAllocationsAreReadByPagesAndOnlyTheyAreKept(t *testing.T) {
	s := &apiServer{lbs: 60}
	allocator := bookOfServer(t, s)
	before := heap()
	require.NoError(t, allocator.load(t.Context()))
	require.LessOrEqual(t, s.largest, pageSize)
	require.Equal(t, "203.0.113.60", allocator.allocator.AllocationsOf("tenant-a/lb-059")[0].Address.String())
	require.Less(t, s.live-before, int64(2<<20), "at each request the former pages are garbage: one LoadBalancer has more than half a megabyte")
	require.Less(t, heap()-before, int64(1<<20))
}

func TestAnExpiredListIsReadFromItsBeginning(t *testing.T) {
	s := &apiServer{lbs: 50, expire: func(request int) bool { return request == 3 }}
	allocator := bookOfServer(t, s)
	require.NoError(t, allocator.load(t.Context()))
	require.Equal(t, 3+3, s.requests)
	records, err := allocator.readRecords(t.Context())
	require.NoError(t, err)
	require.Len(t, records, s.lbs, "each once")
	require.Equal(t, "203.0.113.1", allocator.allocator.AllocationsOf("tenant-a/lb-000")[0].Address.String())
}

func TestNoAddressIsAllocatedBeforeAllAllocationsWereRead(t *testing.T) {
	s := &apiServer{lbs: 50, expire: func(request int) bool { return request%3 == 0 }}
	allocator := bookOfServer(t, s)
	require.ErrorContains(t, allocator.load(t.Context()), "read the allocations of LoadBalancers: the provided continue parameter is too old")
	require.Equal(t, maxAttempts*3, s.requests, "the number of attempts is bounded")
	require.False(t, allocator.loaded)
	s.expire = nil
	require.NoError(t, allocator.load(t.Context()))
	require.Len(t, allocator.allocator.AllocationsOf("tenant-a/lb-049"), 1)
}

func TestTheObjectsOfADeletedTenantAreReadByPages(t *testing.T) {
	s := &apiServer{lbs: 50}
	s.Reader = allocatorOf(t).reader
	r := &tenantReconciler{reader: s}
	require.NoError(t, r.releaseFinalizers(t.Context(), "tenant-a", largest(0).CreationTimestamp.Time))
	require.Equal(t, 3, s.requests)
	require.Equal(t, pageSize, s.largest)
}
