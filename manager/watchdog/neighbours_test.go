package watchdog

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// onSegment are hosts that were there so long ago; names that begin with r are routers.
func onSegment(ago map[string]time.Duration, now time.Time) map[netip.Addr]*neighbour {
	known := map[netip.Addr]*neighbour{}
	for name, d := range ago {
		known[addressOf(name)] = &neighbour{mac: name, router: name[0] == 'r', seen: now.Add(-d)}
	}
	return known
}

func addressOf(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, name[len(name)-1]})
}

func TestHostsThatHadGoneOneByOneSayNothingOfTheSegment(t *testing.T) {
	now := time.Now()
	for says, c := range map[string]struct {
		ago    map[string]time.Duration
		silent bool
	}{
		"nobody was ever there":                    {},
		"one host, which may have been turned off": {ago: map[string]time.Duration{"h1": lookEvery}},
		"a router":                         {ago: map[string]time.Duration{"r1": lookEvery}, silent: true},
		"two hosts":                        {ago: map[string]time.Duration{"h1": lookEvery, "h2": lookEvery}, silent: true},
		"two hosts at about the same time": {ago: map[string]time.Duration{"h1": lookEvery, "h2": 2 * lookEvery}, silent: true},
		"one was turned off today, the other yesterday":      {ago: map[string]time.Duration{"h1": lookEvery, "h2": 24 * time.Hour}},
		"a host, and a router that was turned off yesterday": {ago: map[string]time.Duration{"h1": lookEvery, "r2": 24 * time.Hour}},
	} {
		known := onSegment(c.ago, now)
		require.Equal(t, map[bool]answering{true: nobody, false: tooFew}[c.silent], answered(known, nil, now), says)
		table := map[netip.Addr]netlink.Neigh{addressOf("h1"): {State: netlink.NUD_REACHABLE}}
		known[addressOf("h1")] = &neighbour{mac: "h1"}
		require.Equal(t, somebody, answered(known, table, now), "%s, and one is there", says)
	}
}

func TestAProblemOfAnEarlierProcessLastsUntilAHostAnswersThere(t *testing.T) {
	const problem = "no host that answered before answers at interface eth1 now (198.51.100.1)"
	interfaces := []string{"eth0", "eth1", "eth10"}
	require.True(t, MayLast(problem, interfaces, Segment{}), "nothing is known yet")
	require.True(t, MayLast(problem, interfaces, Segment{Known: []string{"eth0", "eth10"}}), "hosts answer elsewhere")
	require.False(t, MayLast(problem, interfaces, Segment{Known: []string{"eth1"}}))
	require.False(t, MayLast(problem, []string{"eth0"}, Segment{}), "the gateway uses the interface no more")
	require.False(t, MayLast("", interfaces, Segment{}))
}

// After a reboot the kernel knows no host, and where answers to clients leave by another interface it never may.
func TestAProblemOfAnEarlierProcessEndsWhereThereAreTooFewHostsToTell(t *testing.T) {
	const problem = "no host that answered before answers at interface eth1 now (198.51.100.1)"
	for says, c := range map[string]struct {
		hosts []string
		ends  bool
	}{
		"nobody is known":     {ends: true},
		"one host":            {hosts: []string{"h1"}, ends: true},
		"two hosts":           {hosts: []string{"h1", "h2"}},
		"a router of a route": {hosts: []string{"r1"}},
	} {
		known := map[netip.Addr]*neighbour{}
		for _, name := range c.hosts {
			known[addressOf(name)] = &neighbour{mac: name, router: name[0] == 'r'}
		}
		is := looks{silent: map[string]int{}, tooFew: map[string]int{}}
		lasts := func() bool {
			require.False(t, is.note("eth1", answered(known, nil, time.Now())), says)
			return MayLast(problem, []string{"eth1"}, Segment{Known: is.known})
		}
		for range tooFewFor - 1 {
			require.True(t, lasts(), "%s, and the kernel may come to know more", says)
		}
		require.Equal(t, !c.ends, lasts(), says)
		is.note("eth2", undecided)
		for range tooFewFor {
			is.note("eth2", tooFew)
			is.note("eth2", undecided)
		}
		require.NotContains(t, is.known, "eth2", "hosts that are enough were there in between")
	}
}

func TestARouterIsAskedThatTheKernelDoesNotKnowYet(t *testing.T) {
	known, router := map[netip.Addr]*neighbour{}, map[netip.Addr]bool{addressOf("r1"): true}
	remember(known, nil, router, 7)
	require.True(t, known[addressOf("r1")].router)
	require.Equal(t, undecided, answered(known, nil, time.Now()))
	remember(known, nil, nil, 7)
	require.Empty(t, known, "its route is gone")
}

func TestOnlyHostsAreNamedThatWereThereLast(t *testing.T) {
	now := time.Now()
	require.Equal(t, "198.51.100.49, 198.51.100.50", names(onSegment(map[string]time.Duration{"h1": lookEvery, "h2": lookEvery, "h3": 24 * time.Hour}, now)))
}
