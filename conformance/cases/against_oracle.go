package cases

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
	"kubelb.k8c.io/conformance/oracle"
	"kubelb.k8c.io/core/model"
)

func againstOracle() Case {
	return Case{
		Name:  "oracle",
		Shows: "with random records of two tenants and random changes, each flow meets what a model of the path of packets allows: an endpoint of its tenant that may get it, a refusal, or no answer",
		Run: func(c *C) {
			c.Serve(30080)
			c.Serve(30081)
			seed := rand.Uint64()
			c.Logf("seed %d", seed)
			t := &trial{C: c, random: rand.New(rand.NewPCG(seed, 0)), ports: map[*lab.Host]uint16{}}
			for range 30 {
				t.change()
				for range 6 {
					t.flow()
				}
			}
		},
	}
}

// trial makes random traffic and compares it with the oracle.
type trial struct {
	*C
	random *rand.Rand
	state  oracle.State
	// recent are UDP flows that can be used again, with their sockets.
	recent []*recentFlow
	ports  map[*lab.Host]uint16
}

type recentFlow struct {
	net.Conn
	flow oracle.Flow
	used time.Time
}

// udpFlowMemory is the time for which every backend remembers a UDP flow without packets. It is shorter than the shortest timeout
// of a backend.
const udpFlowMemory = 15 * time.Second

// tenantOf returns the tenant of a pool, and the endpoints that the pool may have. Tenants share no endpoints.
func tenantOf(pool string) (of string, endpoints []int) {
	if pool == "r" {
		return otherTenant, []int{3, 4}
	}
	return tenant, []int{0, 1, 2}
}

// change applies other records: three pools of two tenants, and up to eight frontends on two addresses, with features that
// the backend supports. A frontend may move from one tenant to the other.
func (t *trial) change() {
	var s model.Snapshot
	for _, id := range []string{"p", "q", "r"} {
		s.Pools = append(s.Pools, t.pool(id))
	}
	for vip := range 2 {
		for _, port := range []uint16{80, 81} {
			for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
				if t.random.IntN(4) > 0 {
					s.Frontends = append(s.Frontends, t.frontend(protocol, 1+vip, port))
				}
			}
		}
	}
	s = s.Canonical()
	t.Gateway.Apply(s)
	t.state = t.state.Apply(s)
	t.Logf("%s", s.Text())
}

func (t *trial) pool(id string) model.Pool {
	tenant, endpoints := tenantOf(id)
	t.random.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
	p := t.Pool(id, endpoints[:t.random.IntN(len(endpoints)+1)]...)
	p.ID, p.Tenant = t.PoolID(tenant, id), tenant
	for i := range p.Endpoints {
		if t.random.IntN(3) == 0 {
			p.Endpoints[i].State = model.Unhealthy
		}
		if t.supports(dataplane.Drain) && t.random.IntN(4) == 0 {
			p.Endpoints[i].State = model.Draining
		}
		if t.supports(dataplane.Weights) {
			p.Endpoints[i].Weight = uint16(1 + t.random.IntN(3))
		}
	}
	return p
}

func (t *trial) frontend(protocol model.Protocol, vip int, port uint16) model.Frontend {
	target, pool := 30080+uint16(t.random.IntN(8)/7), []string{"p", "q", "r"}[t.random.IntN(3)]
	// Most of the time a frontend does not change, so that the history of its flows matters.
	if t.random.IntN(3) > 0 {
		target, pool = 30080, []string{"p", "r"}[port%2]
	}
	f := t.Frontend(protocol, vip, port, target, pool)
	owner, _ := tenantOf(pool)
	t.give(&f, owner, pool)
	// Only TCP is restricted. The contract does not say whether a known UDP flow continues when its client is no longer
	// allowed.
	if protocol == model.TCP && t.supports(dataplane.SourceRanges) && t.random.IntN(4) == 0 {
		f.Restricted = true
		f.SourceRanges = []netip.Prefix{[]netip.Prefix{t.network("192.0.2.0/24", "2001:db8:c::/64"), t.network("198.18.0.0/15", "2001:db8:d::/64")}[t.random.IntN(2)]}
	}
	return f
}

func (t *trial) supports(f dataplane.Feature) bool { return slices.Contains(t.Description.Features, f) }

// flow makes a new flow or uses a UDP flow again, and compares the outcome with the oracle.
func (t *trial) flow() {
	t.recent = slices.DeleteFunc(t.recent, func(d *recentFlow) bool { return time.Since(d.used) > udpFlowMemory })
	if len(t.recent) > 0 && t.random.IntN(2) == 0 {
		t.datagram(t.recent[t.random.IntN(len(t.recent))])
		return
	}
	client := []*lab.Host{t.Lab.A, t.Lab.B}[t.random.IntN(2)]
	network, protocol := "tcp", model.TCP
	if t.random.IntN(2) == 0 {
		network, protocol = "udp", model.UDP
	}
	t.ports[client]++
	from := lab.From{Port: 20000 + t.ports[client]}
	flow := oracle.Flow{Protocol: protocol, Client: netip.AddrPortFrom(client.Address(t.V4), from.Port),
		To: t.At(1+t.random.IntN(2), 80+uint16(t.random.IntN(3)))}
	if protocol == model.TCP {
		t.connection(client, network, flow, from)
		return
	}
	conn, err := client.Dial(network, flow.To, from)
	t.NoError(err)
	t.Cleanup(func() { conn.Close() })
	d := &recentFlow{Conn: conn, flow: flow}
	t.recent = append(t.recent, d)
	t.datagram(d)
}

// datagram sends a request on a UDP flow. A datagram that gets no answer may still create state in the gateway.
func (t *trial) datagram(d *recentFlow) {
	d.used = time.Now()
	switch t.state.Decide(d.flow).Verdict {
	case oracle.Ignored:
		lab.Send(d)
	case oracle.Forwarded:
		answer, err := lab.RequestAddresses(d, t.Patience)
		t.check(d.flow, answer, err)
	default:
		t.True(lab.Unanswered(d, t.Patience), "%v must not be answered", d.flow)
	}
}

func (t *trial) connection(client *lab.Host, network string, flow oracle.Flow, from lab.From) {
	switch t.state.Decide(flow).Verdict {
	case oracle.Ignored:
		return
	case oracle.Dropped:
		t.True(client.Silent(network, flow.To), "%v must be dropped", flow)
		return
	}
	begin := time.Now()
	answer, err := client.Request(network, flow.To, from)
	t.check(flow, answer, err)
	if t.state.Decide(flow).Verdict == oracle.Refused {
		t.Less(time.Since(begin), t.Patience.For(time.Second), "%v is refused too slowly", flow)
	}
}

func (t *trial) check(f oracle.Flow, answer lab.Answer, err error) {
	d := t.state.Decide(f)
	t.Logf("%s %s > %s: %s %v, met %s %v", f.Protocol, f.Client, f.To, d.Verdict, d.Endpoints, answer.Endpoint, err)
	what := fmt.Sprintf("%s %s > %s must be %s", f.Protocol, f.Client, f.To, d.Verdict)
	if d.Verdict != oracle.Forwarded {
		t.Error(err, what)
		return
	}
	t.NoError(err, what)
	t.Contains(d.Endpoints, answer.Endpoint, what)
	t.state = t.state.After(f, answer.Endpoint)
}
