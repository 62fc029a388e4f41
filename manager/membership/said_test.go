package membership

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/core/election"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/manager/clock"
)

func idleMember(name string) *Member {
	return &Member{options: Options{Name: name, Duration: DefaultDuration, Changed: func() {}, Log: slog.New(slog.DiscardHandler)}, identity: name + "/1", peers: map[string]*peer{}}
}

func leaseThatSays(text string, seconds int32) *coordinationv1.Lease {
	holder := "b/1"
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "b", ResourceVersion: "1", Annotations: map[string]string{annotation: text}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds}}
}

// handoverTo is a frontend whose connections are asked for at the address.
func handoverTo(next netip.Addr) model.Frontend {
	vip := netip.MustParseAddr("203.0.113.1")
	if next.Is6() {
		vip = netip.MustParseAddr("2001:db8::1")
	}
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: model.TCP, Port: 80}, Tenant: "a", Pool: "a/p", TargetPort: 30080, Handover: model.Handover{Next: next, Asks: 1}}
}

// Whatever a gateway says of itself, which is any text, others go on at a bounded cost, and send packets to addresses alone to which they can.
func FuzzWhatAGatewaySaysOfItself(f *testing.F) {
	f.Add(`{"candidates":["a","b"],"configuration":"c","candidate":true,"reached":["192.0.2.2","2001:db8::2"]}`, int32(1))
	f.Add(`{"candidates":null,"reached":["","::ffff:192.0.2.2","fe80::1%eth0","127.0.0.1","224.0.0.1","255.255.255.255","::"]}`, int32(-1))
	f.Add(`{"candidates":["","a","",""],"configuration":"c"}`, int32(2147483647))
	f.Add(`{"candidates":["b"],"candidate":"yes"}`, int32(0))
	f.Add(`{"candidates":["a","b"],"withoutIPv4":["b"],"withoutIPv6":["a","","c"],"configuration":"c","candidate":true}`, int32(1))
	f.Add(`{"candidates":null,"serves":true,"unheardIPv4":true,"unheardIPv6":false}`, int32(1))
	f.Add(`null`, int32(1))
	f.Add(strings.Repeat("[", 20000), int32(1))
	own := election.View{Candidates: []string{"a", "b"}, Configuration: "c"}
	f.Fuzz(func(t *testing.T, text string, seconds int32) {
		m, began := idleMember("a"), clock.Now()
		p := m.see("b", leaseThatSays(text, seconds))
		require.LessOrEqual(t, p.gone, clock.Now()+LongestDuration+LongestDuration/margin)
		require.LessOrEqual(t, len(p.said.Candidates), mostCandidates)
		peers, _, _ := m.Peers()
		for _, address := range []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")} {
			_ = p.said.Winner(address, nil)
			_ = election.MayClaim(address, own, peers, nil)
			_ = election.Acts("b", "a", address, own, peers, nil)
		}
		_, _ = election.Strangers(own, peers), m.state()
		for _, o := range m.Others() {
			require.LessOrEqual(t, len(o.Reached), mostReached)
			for _, a := range o.Reached {
				require.NoError(t, handoverTo(a).Validate())
			}
		}
		require.Less(t, clock.Now()-began, 10*time.Second)
		// What it says is read again as it was taken.
		said, err := json.Marshal(p.said)
		require.NoError(t, err)
		again, err := readSaid(string(said))
		require.NoError(t, err)
		require.True(t, again.equal(p.said), "%s", said)
	})
}

func TestWhatAGatewaySaysThatNoGatewayDoesIsNotHeeded(t *testing.T) {
	said := func(s Said) string {
		text, err := json.Marshal(s)
		require.NoError(t, err)
		return string(text)
	}
	var many []string
	for i := range mostCandidates + 1 {
		many = append(many, fmt.Sprint("gateway-", i))
	}
	for want, text := range map[string]string{
		"candidates: 1001, at most 1000 are heeded":     said(Said{View: election.View{Candidates: many}}),
		"candidates: a name has 1 to 253 characters":    said(Said{View: election.View{Candidates: []string{""}}}),
		"configuration: it is no digest":                said(Said{View: election.View{Configuration: strings.Repeat("x", 300)}}),
		"cannot unmarshal string":                       `{"candidates":["b"],"candidate":"yes"}`,
		"1048577 bytes, at most 1048576 are read":       strings.Repeat(" ", longestAnnotation+1),
		"annotation kubelb.k8c.io/view: unexpected end": "",
	} {
		got, err := readSaid(text)
		require.ErrorContains(t, err, want)
		require.Empty(t, got, "nothing of it")
	}
}

// A packet that is sent to such an address comes to nobody, and a dataplane would refuse the whole frontend.
func TestAddressesAtWhichNoGatewayIsReachedAreLeftOut(t *testing.T) {
	got, err := readSaid(`{"candidates":null,"reached":["","::ffff:192.0.2.2","fe80::1%eth0","fe80::1","127.0.0.1","224.0.0.1","0.0.0.0","::","192.0.2.2","2001:db8::2"]}`)
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, got.Reached)
	all := `"192.0.2.2"` + strings.Repeat(`,"192.0.2.2"`, 10000)
	got, err = readSaid(`{"candidates":null,"reached":[` + all + `]}`)
	require.NoError(t, err)
	require.Len(t, got.Reached, mostReached, "each is asked whether it is there")
}

func TestALeaseThatIsForYearsEndsSoon(t *testing.T) {
	m := idleMember("a")
	m.see("b", leaseThatSays(`{"candidates":null}`, 1<<31-1))
	require.LessOrEqual(t, m.peers["b"].gone, clock.Now()+LongestDuration+LongestDuration/margin)
}

func TestALeaseSaysWhyItsGatewaysObjectIsOfBefore(t *testing.T) {
	m, lease := idleMember("a"), leaseThatSays("", 1)
	says := func(why string) string {
		m.SayUnwritten(why)
		require.NoError(t, m.fill(lease, Said{}, m.unwritten))
		return Unwritten(lease)
	}
	require.Equal(t, "status.failures: too many", says("status.failures: too many"))
	require.LessOrEqual(t, len(says(strings.Repeat("x", 1000))), longestUnwritten)
	require.Empty(t, says(""))
	lease.Annotations[annotationUnwritten] = "\x1b[31m"
	require.Equal(t, `\u001b[31m`, Unwritten(lease), "another one's text gives a terminal no orders")
}
