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
	return &Member{options: Options{Name: name, Duration: DefaultDuration, Changed: func() {}, Log: slog.New(slog.DiscardHandler)}, identity: name + "/1", peers: map[string]*peerLease{}}
}

func leaseWithView(text string, seconds int32) *coordinationv1.Lease {
	holder := "b/1"
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "b", ResourceVersion: "1", Annotations: map[string]string{viewAnnotation: text}},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds}}
}

// frontendRedirectedTo returns a frontend with a redirect to the address.
func frontendRedirectedTo(next netip.Addr) model.Frontend {
	vip := netip.MustParseAddr("203.0.113.1")
	if next.Is6() {
		vip = netip.MustParseAddr("2001:db8::1")
	}
	return model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: model.TCP, Port: 80}, Tenant: "a", Pool: "a/p", TargetPort: 30080, Redirect: model.Redirect{Next: next, Limit: 1}}
}

// A gateway may publish any text. Its peers handle it at a bounded cost, and redirect packets only to addresses that a gateway can have.
func FuzzPublishedView(f *testing.F) {
	f.Add(`{"candidates":["a","b"],"configuration":"c","candidate":true,"reached":["192.0.2.2","2001:db8::2"]}`, int32(1))
	f.Add(`{"candidates":null,"reached":["","::ffff:192.0.2.2","fe80::1%eth0","127.0.0.1","224.0.0.1","255.255.255.255","::"]}`, int32(-1))
	f.Add(`{"candidates":["","a","",""],"configuration":"c"}`, int32(2147483647))
	f.Add(`{"candidates":["b"],"candidate":"yes"}`, int32(0))
	f.Add(`{"candidates":["a","b"],"withoutIPv4":["b"],"withoutIPv6":["a","","c"],"configuration":"c","candidate":true}`, int32(1))
	f.Add(`{"candidates":null,"serves":true,"unheardIPv4":true,"unheardIPv6":false}`, int32(1))
	f.Add(`null`, int32(1))
	f.Add(strings.Repeat("[", 20000), int32(1))
	ownView := election.View{Candidates: []string{"a", "b"}, Configuration: "c"}
	f.Fuzz(func(t *testing.T, text string, seconds int32) {
		m, began := idleMember("a"), clock.Now()
		p := m.updatePeer("b", leaseWithView(text, seconds))
		require.LessOrEqual(t, p.expires, clock.Now()+MaxDuration+MaxDuration/clockMargin)
		require.LessOrEqual(t, len(p.published.Candidates), maxCandidates)
		peers, _, _ := m.ActivePeers()
		for _, address := range []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")} {
			_ = p.published.Winner(address, nil)
			_ = election.MayBegin(address, ownView, peers, nil)
			_ = election.MayAnswer("b", "a", address, ownView, peers, nil)
		}
		_, _ = election.ConfigurationsDiffer(ownView, peers), m.fingerprint()
		for _, o := range m.AllPeers() {
			require.LessOrEqual(t, len(o.RedirectAddresses), maxRedirectAddresses)
			for _, a := range o.RedirectAddresses {
				require.NoError(t, frontendRedirectedTo(a).Validate())
			}
		}
		require.Less(t, clock.Now()-began, 10*time.Second)
		// The result survives a second round.
		encoded, err := json.Marshal(p.published)
		require.NoError(t, err)
		again, err := parsePublished(string(encoded))
		require.NoError(t, err)
		require.True(t, again.equal(p.published), "%s", encoded)
	})
}

func TestAnInvalidViewIsNotUsed(t *testing.T) {
	encode := func(s Published) string {
		text, err := json.Marshal(s)
		require.NoError(t, err)
		return string(text)
	}
	var many []string
	for i := range maxCandidates + 1 {
		many = append(many, fmt.Sprint("gateway-", i))
	}
	for want, text := range map[string]string{
		"candidates: 1001 names, at most 1000 are allowed":  encode(Published{View: election.View{Candidates: many}}),
		"candidates: a name has 1 to 253 characters":        encode(Published{View: election.View{Candidates: []string{""}}}),
		"configuration: 300 bytes, at most 256 are allowed": encode(Published{View: election.View{Configuration: strings.Repeat("x", 300)}}),
		"cannot unmarshal string":                           `{"candidates":["b"],"candidate":"yes"}`,
		"1048577 bytes, at most 1048576 are read":           strings.Repeat(" ", maxAnnotationBytes+1),
		"annotation kubelb.k8c.io/view: unexpected end":     "",
	} {
		got, err := parsePublished(text)
		require.ErrorContains(t, err, want)
		require.Empty(t, got, "nothing of it is used")
	}
}

// Packets to such an address reach nobody, and a dataplane would refuse the whole frontend.
func TestAddressesAtWhichNoGatewayCanBeAreDropped(t *testing.T) {
	got, err := parsePublished(`{"candidates":null,"reached":["","::ffff:192.0.2.2","fe80::1%eth0","fe80::1","127.0.0.1","224.0.0.1","0.0.0.0","::","192.0.2.2","2001:db8::2"]}`)
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, got.RedirectAddresses)
	all := `"192.0.2.2"` + strings.Repeat(`,"192.0.2.2"`, 10000)
	got, err = parsePublished(`{"candidates":null,"reached":[` + all + `]}`)
	require.NoError(t, err)
	require.Len(t, got.RedirectAddresses, maxRedirectAddresses, "each of them is probed")
}

func TestALeaseOfYearsExpiresSoon(t *testing.T) {
	m := idleMember("a")
	m.updatePeer("b", leaseWithView(`{"candidates":null}`, 1<<31-1))
	require.LessOrEqual(t, m.peers["b"].expires, clock.Now()+MaxDuration+MaxDuration/clockMargin)
}

func TestALeaseSaysWhyItsGatewayObjectIsOutOfDate(t *testing.T) {
	m, lease := idleMember("a"), leaseWithView("", 1)
	readBack := func(why string) string {
		m.SetWriteError(why)
		require.NoError(t, m.fillLease(lease, Published{}, m.writeError))
		return WriteError(lease)
	}
	require.Equal(t, "status.failures: too many", readBack("status.failures: too many"))
	require.LessOrEqual(t, len(readBack(strings.Repeat("x", 1000))), maxWriteErrorBytes)
	require.Empty(t, readBack(""))
	lease.Annotations[writeErrorAnnotation] = "\x1b[31m"
	require.Equal(t, `\u001b[31m`, WriteError(lease), "control characters do not reach a terminal")
}
