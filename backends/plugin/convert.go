package plugin

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"kubelb.k8c.io/backends/dataplane"
	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// A number on the wire that is out of range is an error and is never truncated: it would be another port, and so another record. Errors name the
// record and the field, as in dataplane.proto.

func parseAddress(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d bytes, not 4 or 16", len(b))
	}
	if a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %s: an IPv4 address has 4 bytes", a)
	}
	return a, nil
}

// fields converts the fields of one record, and keeps the first error.
type fields struct{ err error }

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(format, args...)
	}
}

// number returns the number in a field. A number above the limit is an error.
func number[N ~uint8 | ~uint16](f *fields, field string, value uint32, limit N) N {
	if value > uint32(limit) {
		f.fail("%s %d is more than %d", field, value, uint32(limit))
	}
	return N(value)
}

func (f *fields) uint16(field string, value uint32) uint16 {
	return number(f, field, value, uint16(math.MaxUint16))
}

func (f *fields) address(field string, value []byte) netip.Addr {
	a, err := parseAddress(value)
	if err != nil {
		f.fail("%s: %w", field, err)
	}
	return a
}

func (f *fields) protocol(field string, value uint32) model.Protocol {
	if value != uint32(model.TCP) && value != uint32(model.UDP) {
		f.fail("%s %d is neither TCP (%d) nor UDP (%d)", field, value, model.TCP, model.UDP)
	}
	return model.Protocol(value)
}

func (f *fields) prefix(field string, value *pb.Prefix) netip.Prefix {
	p := netip.PrefixFrom(f.address(field, value.GetAddress()), int(min(value.GetBits(), math.MaxUint8)))
	if !p.IsValid() {
		f.fail("%s: %d bits are more than an address of %d has", field, value.GetBits(), p.Addr().BitLen())
	}
	return p
}

func (f *fields) milliseconds(field string, value uint64) time.Duration {
	if limit := uint64(math.MaxInt64 / time.Millisecond); value > limit {
		f.fail("%s %d is more than %d", field, value, limit)
	}
	return time.Duration(value) * time.Millisecond
}

func keyToWire(k model.FrontendKey) *pb.FrontendKey {
	return &pb.FrontendKey{Vip: k.VIP.AsSlice(), Protocol: uint32(k.Protocol), Port: uint32(k.Port)}
}

func keyFromWire(k *pb.FrontendKey) (model.FrontendKey, error) {
	var f fields
	key := model.FrontendKey{VIP: f.address("vip", k.GetVip()), Protocol: f.protocol("protocol", k.GetProtocol()), Port: f.uint16("port", k.GetPort())}
	if f.err != nil {
		return model.FrontendKey{}, fmt.Errorf("frontend key: %w", f.err)
	}
	return key, nil
}

func poolToWire(p model.Pool) *pb.Pool {
	out := &pb.Pool{Id: string(p.ID), Tenant: p.Tenant}
	for _, e := range p.Endpoints {
		out.Endpoints = append(out.Endpoints, &pb.Endpoint{Id: e.ID, Address: e.Address.AsSlice(), Weight: uint32(e.Weight), State: uint32(e.State)})
	}
	return out
}

// poolFromWire returns the pool's name with an error.
func poolFromWire(p *pb.Pool) (model.Pool, error) {
	out := model.Pool{ID: model.PoolID(p.GetId()), Tenant: p.GetTenant()}
	for _, e := range p.GetEndpoints() {
		var f fields
		out.Endpoints = append(out.Endpoints, model.Endpoint{ID: e.GetId(), Address: f.address("address", e.GetAddress()),
			Weight: f.uint16("weight", e.GetWeight()), State: number(&f, "state", e.GetState(), model.Unhealthy)})
		if f.err != nil {
			return model.Pool{ID: out.ID}, fmt.Errorf("pool %s: endpoint %s: %w", out.ID, e.GetId(), f.err)
		}
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
	if h := f.Redirect; !h.IsZero() {
		out.Handover = &pb.Handover{Next: h.Next.AsSlice(), Asks: uint32(h.Limit)}
	}
	for _, r := range f.SourceRanges {
		out.SourceRanges = append(out.SourceRanges, &pb.Prefix{Address: r.Addr().AsSlice(), Bits: uint32(r.Bits())})
	}
	return out
}

// frontendFromWire returns the frontend's key with an error, if the key is valid.
func frontendFromWire(f *pb.Frontend) (model.Frontend, error) {
	key, err := keyFromWire(f.GetKey())
	if err != nil {
		return model.Frontend{}, fmt.Errorf("frontend of %s/%s: %w", f.GetOwnerNamespace(), f.GetOwnerName(), err)
	}
	var of fields
	out := model.Frontend{
		FrontendKey: key, Owner: model.ObjectName{Namespace: f.GetOwnerNamespace(), Name: f.GetOwnerName()}, Tenant: f.GetTenant(),
		Pool: model.PoolID(f.GetPool()), TargetPort: of.uint16("target_port", f.GetTargetPort()), Forwarding: number(&of, "forwarding", f.GetForwarding(), model.Direct),
		AffinityTimeout: time.Duration(f.GetAffinitySeconds()) * time.Second, Restricted: f.GetRestricted(),
		IdleTimeout: of.milliseconds("idle_timeout_milliseconds", f.GetIdleTimeoutMilliseconds()), ProxyProtocol: f.GetProxyProtocol(),
		MaxConnections: f.GetMaxConnections(), MaxNewPerSecond: f.GetMaxNewPerSecond(),
	}
	if h := f.GetHandover(); h != nil {
		out.Redirect = model.Redirect{Next: of.address("handover", h.GetNext()), Limit: number(&of, "handover: asks", h.GetAsks(), uint8(model.MaxRedirects))}
	}
	for _, r := range f.GetSourceRanges() {
		out.SourceRanges = append(out.SourceRanges, of.prefix("source_ranges", r))
	}
	if of.err != nil {
		return model.Frontend{FrontendKey: key}, fmt.Errorf("frontend %s: %w", key, of.err)
	}
	return out, nil
}

func recordErrorToWire(e dataplane.RecordError) *pb.RecordError {
	out := &pb.RecordError{Pool: string(e.Pool), Message: printable(e.Message)}
	if e.Pool == "" {
		out.Frontend = keyToWire(e.Frontend)
	}
	return out
}

func recordErrorFromWire(e *pb.RecordError) (dataplane.RecordError, error) {
	if e.GetPool() != "" {
		if e.GetFrontend() != nil {
			return dataplane.RecordError{}, fmt.Errorf("failed record: both pool %s and a frontend", e.GetPool())
		}
		return dataplane.RecordError{Pool: model.PoolID(e.GetPool()), Message: e.GetMessage()}, nil
	}
	key, err := keyFromWire(e.GetFrontend())
	if err != nil {
		return dataplane.RecordError{}, fmt.Errorf("failed record without a pool: %w", err)
	}
	return dataplane.RecordError{Frontend: key, Message: e.GetMessage()}, nil
}

// printable replaces bytes that are not UTF-8, which gRPC would refuse.
func printable(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

func generationToWire(g dataplane.Generation) *pb.Generation {
	return &pb.Generation{Epoch: g.Epoch, Number: g.Number}
}

func generationFromWire(g *pb.Generation) dataplane.Generation {
	return dataplane.Generation{Epoch: g.GetEpoch(), Number: g.GetNumber()}
}

func configToWire(c dataplane.Config) *pb.Configuration {
	return &pb.Configuration{StateDir: c.StateDir, Options: c.Options}
}

func configFromWire(c *pb.Configuration) dataplane.Config {
	return dataplane.Config{StateDir: c.GetStateDir(), Options: c.GetOptions()}
}

func counterToWire(c dataplane.Counter) *pb.Counter {
	return &pb.Counter{Connections: c.Connections, Packets: c.Packets, Bytes: c.Bytes, Open: c.Open}
}

func counterFromWire(c *pb.Counter) dataplane.Counter {
	return dataplane.Counter{Connections: c.GetConnections(), Packets: c.GetPackets(), Bytes: c.GetBytes(), Open: c.GetOpen()}
}

func checkToWire(c dataplane.Check) *pb.Check {
	return &pb.Check{Group: string(c.Group), Subject: printable(c.Subject), State: string(c.State), Costs: printable(c.Costs), Found: printable(c.Found),
		Command: printable(c.Command), Advice: printable(c.Advice)}
}

// checkFromWire converts a check. An invalid state becomes CheckUnknown.
func checkFromWire(c *pb.Check) dataplane.Check {
	state := dataplane.CheckState(c.GetState())
	if state != dataplane.CheckOK && state != dataplane.CheckMissing {
		state = dataplane.CheckUnknown
	}
	return dataplane.Check{Group: dataplane.Group(c.GetGroup()), Subject: c.GetSubject(), State: state, Costs: c.GetCosts(),
		Found: c.GetFound(), Command: c.GetCommand(), Advice: c.GetAdvice()}
}
