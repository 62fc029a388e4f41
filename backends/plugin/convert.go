package plugin

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

func address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes", len(b))
	}
	return a, nil
}

func keyToWire(k model.FrontendKey) *pb.FrontendKey {
	return &pb.FrontendKey{Vip: k.VIP.AsSlice(), Protocol: uint32(k.Protocol), Port: uint32(k.Port)}
}

func keyFromWire(k *pb.FrontendKey) (model.FrontendKey, error) {
	vip, err := address(k.GetVip())
	return model.FrontendKey{VIP: vip, Protocol: model.Protocol(k.GetProtocol()), Port: uint16(k.GetPort())}, err
}

func poolToWire(p model.Pool) *pb.Pool {
	out := &pb.Pool{Id: string(p.ID), Tenant: p.Tenant}
	for _, e := range p.Endpoints {
		out.Endpoints = append(out.Endpoints, &pb.Endpoint{Id: e.ID, Address: e.Address.AsSlice(), Weight: uint32(e.Weight), State: uint32(e.State)})
	}
	return out
}

func poolFromWire(p *pb.Pool) (model.Pool, error) {
	out := model.Pool{ID: model.PoolID(p.GetId()), Tenant: p.GetTenant()}
	for _, e := range p.GetEndpoints() {
		a, err := address(e.GetAddress())
		if err != nil {
			return out, fmt.Errorf("pool %s: endpoint %s: %w", out.ID, e.GetId(), err)
		}
		out.Endpoints = append(out.Endpoints, model.Endpoint{ID: e.GetId(), Address: a, Weight: uint16(e.GetWeight()), State: model.EndpointState(e.GetState())})
	}
	return out, nil
}

func frontendToWire(f model.Frontend) *pb.Frontend {
	out := &pb.Frontend{
		Key: keyToWire(f.FrontendKey), OwnerNamespace: f.Owner.Namespace, OwnerName: f.Owner.Name, Tenant: f.Tenant,
		Pool: string(f.Pool), TargetPort: uint32(f.TargetPort), Forwarding: uint32(f.Forwarding),
		AffinitySeconds: uint32(f.AffinityTimeout / time.Second), Restricted: f.Restricted,
		IdleTimeoutMilliseconds: uint64(f.IdleTimeout / time.Millisecond), ProxyProtocol: f.ProxyProtocol,
		MaxConnections: f.MaxConnections, MaxNewPerSecond: f.MaxNewPerSecond,
	}
	if h := f.Handover; !h.IsZero() {
		out.Handover = &pb.Handover{Next: h.Next.AsSlice(), Asks: uint32(h.Asks)}
	}
	for _, r := range f.SourceRanges {
		out.SourceRanges = append(out.SourceRanges, &pb.Prefix{Address: r.Addr().AsSlice(), Bits: uint32(r.Bits())})
	}
	return out
}

func frontendFromWire(f *pb.Frontend) (model.Frontend, error) {
	key, err := keyFromWire(f.GetKey())
	if err != nil {
		return model.Frontend{}, fmt.Errorf("frontend of %s/%s: %w", f.GetOwnerNamespace(), f.GetOwnerName(), err)
	}
	out := model.Frontend{
		FrontendKey: key, Owner: model.ObjectName{Namespace: f.GetOwnerNamespace(), Name: f.GetOwnerName()}, Tenant: f.GetTenant(),
		Pool: model.PoolID(f.GetPool()), TargetPort: uint16(f.GetTargetPort()), Forwarding: model.Forwarding(f.GetForwarding()),
		AffinityTimeout: time.Duration(f.GetAffinitySeconds()) * time.Second, Restricted: f.GetRestricted(),
		IdleTimeout: time.Duration(f.GetIdleTimeoutMilliseconds()) * time.Millisecond, ProxyProtocol: f.GetProxyProtocol(),
		MaxConnections: f.GetMaxConnections(), MaxNewPerSecond: f.GetMaxNewPerSecond(),
	}
	if h := f.GetHandover(); h != nil {
		next, err := address(h.GetNext())
		if err != nil {
			return out, fmt.Errorf("%s: handover: %w", key, err)
		}
		out.Handover = model.Handover{Next: next, Asks: uint8(min(h.GetAsks(), math.MaxUint8))}
	}
	for _, r := range f.GetSourceRanges() {
		a, err := address(r.GetAddress())
		if err != nil {
			return out, fmt.Errorf("%s: source range: %w", key, err)
		}
		out.SourceRanges = append(out.SourceRanges, netip.PrefixFrom(a, int(r.GetBits())))
	}
	return out, nil
}

func generationToWire(g dataplane.Generation) *pb.Generation {
	return &pb.Generation{Epoch: g.Epoch, Number: g.Number}
}

func generationFromWire(g *pb.Generation) dataplane.Generation {
	return dataplane.Generation{Epoch: g.GetEpoch(), Number: g.GetNumber()}
}

func configToWire(c dataplane.Config) *pb.Configuration {
	out := &pb.Configuration{Node: c.Node, Uplinks: c.Uplinks, SourcePortMin: uint32(c.SourcePortMin), SourcePortMax: uint32(c.SourcePortMax),
		StateDir: c.StateDir, Options: c.Options}
	for _, a := range c.SourceAddresses {
		out.SourceAddresses = append(out.SourceAddresses, a.AsSlice())
	}
	return out
}

func configFromWire(c *pb.Configuration) (dataplane.Config, error) {
	out := dataplane.Config{Node: c.GetNode(), Uplinks: c.GetUplinks(), SourcePortMin: uint16(c.GetSourcePortMin()),
		SourcePortMax: uint16(c.GetSourcePortMax()), StateDir: c.GetStateDir(), Options: c.GetOptions()}
	for _, b := range c.GetSourceAddresses() {
		a, err := address(b)
		if err != nil {
			return out, fmt.Errorf("source addresses: %w", err)
		}
		out.SourceAddresses = append(out.SourceAddresses, a)
	}
	return out, nil
}

func counterToWire(c dataplane.Counter) *pb.Counter {
	return &pb.Counter{Connections: c.Connections, Packets: c.Packets, Bytes: c.Bytes, Open: c.Open}
}

func counterFromWire(c *pb.Counter) dataplane.Counter {
	return dataplane.Counter{Connections: c.GetConnections(), Packets: c.GetPackets(), Bytes: c.GetBytes(), Open: c.GetOpen()}
}

func checkToWire(c dataplane.Check) *pb.Check {
	return &pb.Check{Group: string(c.Group), Subject: c.Subject, State: string(c.State), Costs: c.Costs, Found: c.Found, Command: c.Command, Advice: c.Advice}
}

func checkFromWire(c *pb.Check) dataplane.Check {
	return dataplane.Check{Group: dataplane.Group(c.GetGroup()), Subject: c.GetSubject(), State: dataplane.CheckState(c.GetState()), Costs: c.GetCosts(),
		Found: c.GetFound(), Command: c.GetCommand(), Advice: c.GetAdvice()}
}
