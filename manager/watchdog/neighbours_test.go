package watchdog

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// hostsSince returns hosts that answered last so long ago. Hosts with names that begin with r are routers.
func hostsSince(ago map[string]time.Duration, now time.Time) map[netip.Addr]*neighbour {
	known := map[netip.Addr]*neighbour{}
	for name, d := range ago {
		known[addressOf(name)] = &neighbour{mac: name, router: name[0] == 'r', lastAnswer: now.Add(-d)}
	}
	return known
}

func addressOf(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, name[len(name)-1]})
}

func TestHostsThatWentOneByOneShowNoProblemOfTheSegment(t *testing.T) {
	now := time.Now()
	for says, c := range map[string]struct {
		ago    map[string]time.Duration
		silent bool
	}{
		"there was never a host":                   {},
		"one host, which may have been turned off": {ago: map[string]time.Duration{"h1": probeInterval}},
		"a router":                         {ago: map[string]time.Duration{"r1": probeInterval}, silent: true},
		"two hosts":                        {ago: map[string]time.Duration{"h1": probeInterval, "h2": probeInterval}, silent: true},
		"two hosts at about the same time": {ago: map[string]time.Duration{"h1": probeInterval, "h2": 2 * probeInterval}, silent: true},
		"one was turned off today, the other yesterday":      {ago: map[string]time.Duration{"h1": probeInterval, "h2": 24 * time.Hour}},
		"a host, and a router that was turned off yesterday": {ago: map[string]time.Duration{"h1": probeInterval, "r2": 24 * time.Hour}},
	} {
		known := hostsSince(c.ago, now)
		require.Equal(t, map[bool]probeResult{true: noHostAnswers, false: tooFewHosts}[c.silent], evaluate(known, nil, now), says)
		table := map[netip.Addr]netlink.Neigh{addressOf("h1"): {State: netlink.NUD_REACHABLE}}
		known[addressOf("h1")] = &neighbour{mac: "h1"}
		require.Equal(t, hostAnswers, evaluate(known, table, now), "%s, and a host answers", says)
	}
}

func TestAProblemOfAFormerProcessLastsUntilAHostAnswersThere(t *testing.T) {
	const problem = "no host that answered before answers at interface eth1 now (198.51.100.1)"
	interfaces := []string{"eth0", "eth1", "eth10"}
	require.True(t, MayPersist(problem, interfaces, Segment{}), "there is no result yet")
	require.True(t, MayPersist(problem, interfaces, Segment{Known: []string{"eth0", "eth10"}}), "hosts answer elsewhere")
	require.False(t, MayPersist(problem, interfaces, Segment{Known: []string{"eth1"}}))
	require.False(t, MayPersist(problem, []string{"eth0"}, Segment{}), "the gateway does not use the interface any more")
	require.False(t, MayPersist("", interfaces, Segment{}))
}

// After a reboot the kernel knows no host. If answers to clients leave by another interface, it may never know one.
func TestAProblemOfAFormerProcessEndsIfThereAreTooFewHosts(t *testing.T) {
	const problem = "no host that answered before answers at interface eth1 now (198.51.100.1)"
	for says, c := range map[string]struct {
		hosts []string
		ends  bool
	}{
		"no host is known":    {ends: true},
		"one host":            {hosts: []string{"h1"}, ends: true},
		"two hosts":           {hosts: []string{"h1", "h2"}},
		"a router of a route": {hosts: []string{"r1"}},
	} {
		known := map[netip.Addr]*neighbour{}
		for _, name := range c.hosts {
			known[addressOf(name)] = &neighbour{mac: name, router: name[0] == 'r'}
		}
		is := probeResults{silent: map[string]int{}, tooFew: map[string]int{}}
		lasts := func() bool {
			require.False(t, is.add("eth1", evaluate(known, nil, time.Now())), says)
			return MayPersist(problem, []string{"eth1"}, Segment{Known: is.known})
		}
		for range tooFewLimit - 1 {
			require.True(t, lasts(), "%s, and the kernel may learn more hosts", says)
		}
		require.Equal(t, !c.ends, lasts(), says)
		is.add("eth2", undecided)
		for range tooFewLimit {
			is.add("eth2", tooFewHosts)
			is.add("eth2", undecided)
		}
		require.NotContains(t, is.known, "eth2", "there were enough hosts in between")
	}
}

func TestARouterThatTheKernelDoesNotKnowYetIsProbed(t *testing.T) {
	known, router := map[netip.Addr]*neighbour{}, map[netip.Addr]bool{addressOf("r1"): true}
	updateKnown(known, nil, router, 7)
	require.True(t, known[addressOf("r1")].router)
	require.Equal(t, undecided, evaluate(known, nil, time.Now()))
	updateKnown(known, nil, nil, 7)
	require.Empty(t, known, "its route was removed")
}

func TestOnlyHostsThatAnsweredLastAreNamed(t *testing.T) {
	now := time.Now()
	require.Equal(t, "198.51.100.49, 198.51.100.50", addressList(hostsSince(map[string]time.Duration{"h1": probeInterval, "h2": probeInterval, "h3": 24 * time.Hour}, now)))
}
