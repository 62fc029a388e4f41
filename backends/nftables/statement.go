package nftables

import (
	"fmt"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/nftables/rules"
)

// family has what differs between the tables of the two address families.
type family struct {
	name        string
	table       nft.TableFamily
	v4          bool
	address     nft.SetDatatype
	source      uint32 // offset of the source address in the network header
	destination uint32
	size        uint32 // bytes of an address
	ttl         uint32 // offset of the TTL, or of the hop limit
	ttlName     string
	echo        string
	icmp        byte // protocol number
	echoType    byte
	unreachable string
	rejectCode  uint8
}

var families = [2]family{
	{name: "ip", table: nft.TableFamilyIPv4, v4: true, address: nft.TypeIPAddr, source: 12, destination: 16, size: 4, ttl: 8, ttlName: "ip ttl",
		echo: "icmp type echo-request", icmp: unix.IPPROTO_ICMP, echoType: 8, unreachable: "icmp type port-unreachable", rejectCode: 3},
	{name: "ip6", table: nft.TableFamilyIPv6, address: nft.TypeIP6Addr, source: 8, destination: 24, size: 16, ttl: 7, ttlName: "ip6 hoplimit",
		echo: "icmpv6 type echo-request", icmp: unix.IPPROTO_ICMPV6, echoType: 128, unreachable: "icmpv6 type port-unreachable", rejectCode: 4},
}

// words returns the number of 32-bit registers of an address.
func (f family) words() int { return int(f.size / 4) }

// statement is a part of a rule: as text of nft, and as expressions of the kernel. The expressions are those to which nft
// 1.0 compiles the text, so that nft lists the rules as they are written here.
type statement struct {
	text  string
	exprs []expr.Any
}

func mark(v uint32) []byte { return rules.Native(v) }

// frontendKey loads destination, protocol and port, beginning at the given register word.
func (f family) frontendKey(word int) []expr.Any {
	return rules.Destination(f.destination, f.size, word)
}

func (f family) loadSource(word int) expr.Any { return rules.Network(f.source, f.size, word) }

func (f family) frontendText() string { return f.name + " daddr . meta l4proto . th dport" }

// isTCPOrUDP has to come before statements that read ports. protocols is the anonymous set {tcp, udp}.
func isTCPOrUDP(protocols *nft.Set) statement {
	return statement{"meta l4proto { tcp, udp }", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: protocols.Name, SetID: protocols.ID},
	}}
}

func isProtocol(name string, number byte) statement {
	return statement{"meta l4proto " + name, rules.Protocol(number)}
}

func (f family) isEcho() statement { return statement{f.echo, rules.ICMP(f.icmp, f.echoType)} }

func (f family) destinationIn(set string) statement {
	return statement{f.name + " daddr @" + set, []expr.Any{rules.Network(f.destination, f.size, 0), rules.In(set, 0)}}
}

func (f family) frontendIn(set string) statement {
	return statement{f.frontendText() + " @" + set, append(f.frontendKey(0), rules.In(set, 0))}
}

func (f family) sourceIn(set string) statement {
	return statement{f.name + " saddr @" + set, []expr.Any{f.loadSource(0), rules.In(set, 0)}}
}

func (f family) frontendVerdict(set string) statement {
	return statement{f.frontendText() + " vmap @" + set, append(f.frontendKey(0), rules.VerdictMap(set))}
}

// isNoOpening matches TCP segments that do not open a connection.
func isNoOpening() statement {
	return statement{"tcp flags != syn / fin,syn,rst,ack", rules.NotOpening()}
}

// socketIsTransparent matches packets for a transparent socket of this host: one whose address does not belong to the host.
func socketIsTransparent() statement {
	return statement{"socket transparent 1", rules.Socket(expr.SocketKeyTransparent, 1)}
}

// sendCopyTo sends a copy of the packet, which has ports, to the gateway that the map has for the frontend. Only dup can take the next hop from a
// map. If the map has no element, the rule ends here.
func (f family) sendCopyTo(set string) statement {
	return statement{"dup to " + f.frontendText() + " map @" + set, append(f.frontendKey(0), rules.Map(set, 0, 0), &expr.Dup{RegAddr: 1})}
}

func (f family) loadTTL() expr.Any {
	return rules.Network(f.ttl, 1, 0)
}

// ttlBetween matches a TTL from low to high.
func (f family) ttlBetween(low, high int) statement {
	if low == high {
		return statement{fmt.Sprintf("%s %d", f.ttlName, low), []expr.Any{f.loadTTL(), rules.Equals(byte(low))}}
	}
	return statement{fmt.Sprintf("%s %d-%d", f.ttlName, low, high), []expr.Any{f.loadTTL(),
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{byte(low)}}, &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{byte(high)}}}}
}

func (f family) ttlBelow(bound int) statement {
	return statement{fmt.Sprintf("%s < %d", f.ttlName, bound), []expr.Any{f.loadTTL(), &expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{byte(bound)}}}}
}

// setTTL sets the TTL, and for IPv4 the header's checksum.
func (f family) setTTL(ttl byte) statement {
	text := fmt.Sprintf("%s set %d", f.ttlName, ttl)
	if !f.v4 {
		return statement{text, []expr.Any{&expr.Immediate{Register: 1, Data: []byte{ttl}},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.ttl, Len: 1}}}
	}
	const checksumAt = 10
	return statement{text, []expr.Any{ // including the protocol, since the checksum is over 16-bit words
		rules.Network(f.ttl, 2, 0),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0, 0xff}, Xor: []byte{ttl, 0}},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.ttl, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksumAt},
	}}
}

func ctStateHas(name string, bits uint32) statement {
	return statement{"ct state " + name, rules.CtHas(expr.CtKeySTATE, bits)}
}

func ctStatusDNAT() statement {
	const dnat = 0x20 // IPS_DST_NAT
	return statement{"ct status dnat", rules.CtHas(expr.CtKeySTATUS, dnat)}
}

func setMark(e ...expr.Any) []expr.Any {
	return append(e, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true})
}

func setCtMark(e ...expr.Any) []expr.Any {
	return append(e, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
}

func loadMark(word int) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyMARK, Register: rules.Register(word)}
}

func loadCtMark(word int) expr.Any {
	return &expr.Ct{Key: expr.CtKeyMARK, Register: rules.Register(word)}
}

// markFromFrontend sets the packet mark to the map's value for the frontend.
func (f family) markFromFrontend(set string) statement {
	return statement{"meta mark set " + f.frontendText() + " map @" + set, setMark(append(f.frontendKey(0), rules.Map(set, 0, 0))...)}
}

func (f family) ctMarkFromFrontend(set string) statement {
	return statement{"ct mark set " + f.frontendText() + " map @" + set, setCtMark(append(f.frontendKey(0), rules.Map(set, 0, 0))...)}
}

func markIn(set string) statement {
	return statement{"meta mark @" + set, []expr.Any{loadMark(0), rules.In(set, 0)}}
}

func markVerdict(set string) statement {
	return statement{"meta mark vmap @" + set, []expr.Any{loadMark(0), rules.VerdictMap(set)}}
}

// hashSeed must be the same on all gateways, so that all choose the same endpoint.
const hashSeed = 0x6b7562

// rowFromFlow sets the connection mark to a hash of source address and port, rowFromSource to a hash of the address.
func (f family) rowFromFlow(size int) statement {
	return statement{fmt.Sprintf("ct mark set jhash %s saddr . th sport mod %d seed 0x%x", f.name, size, hashSeed), setCtMark(
		f.loadSource(4), rules.Transport(0, 2, 4+f.words()), f.hash(size, f.size+4))}
}

func (f family) rowFromSource(size int) statement {
	return statement{fmt.Sprintf("ct mark set jhash %s saddr mod %d seed 0x%x", f.name, size, hashSeed), setCtMark(
		f.loadSource(4), f.hash(size, f.size))}
}

func (f family) hash(size int, length uint32) expr.Any {
	return &expr.Hash{SourceRegister: rules.Register(4), DestRegister: 1, Length: length, Modulus: uint32(size), Seed: hashSeed, Type: expr.HashTypeJenkins}
}

// handleFromRow sets the packet mark, which is a pool, to the handle of an endpoint of the pool: by its row or its node.
func handleFromRow(set string) statement {
	return statement{"meta mark set meta mark . ct mark map @" + set, setMark(loadMark(0), loadCtMark(1), rules.Map(set, 0, 0))}
}

// markFromMark sets the packet mark to the map's value for it.
func markFromMark(set string) statement {
	return statement{"meta mark set meta mark map @" + set, setMark(loadMark(0), rules.Map(set, 0, 0))}
}

// ctMarkFromMark copies the packet mark to the connection mark.
func ctMarkFromMark() statement { return statement{"ct mark set meta mark", setCtMark(loadMark(0))} }

// nodeFromClient sets the packet mark to the client's stored node, if there is one.
func (f family) nodeFromClient(set string) statement {
	return statement{"meta mark set ct mark . " + f.name + " saddr map @" + set, setMark(loadCtMark(0),
		f.loadSource(1), rules.Map(set, 0, 0))}
}

// storeClient stores the packet mark, which is a node, for the client until the timeout. For a stored client the kernel only renews the timeout.
func (f family) storeClient(set string, timeout time.Duration) statement {
	return f.clientOperation("update", unix.NFT_DYNSET_OP_UPDATE, set, timeout)
}

// deleteClient deletes the client's stored node.
func (f family) deleteClient(set string) statement {
	const remove = 2 // NFT_DYNSET_OP_DELETE (linux/netfilter/nf_tables.h)
	return f.clientOperation("delete", remove, set, 0)
}

func (f family) clientOperation(name string, operation uint32, set string, timeout time.Duration) statement {
	text := fmt.Sprintf("%s @%s { ct mark . %s saddr", name, set, f.name)
	if timeout > 0 {
		text += fmt.Sprintf(" timeout %ds", int(timeout.Seconds()))
	}
	return statement{text + " : meta mark }", []expr.Any{
		loadCtMark(0),
		f.loadSource(1),
		loadMark(8),
		&expr.Dynset{SrcRegKey: 1, SrcRegData: rules.Register(8), SetName: set, Operation: operation, Timeout: timeout},
	}}
}

// forward rewrites the destination to the endpoint whose handle is the packet mark, at the frontend's target port.
func (f family) forward(endpoints, ports string) statement {
	nat := expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(unix.NFPROTO_IPV6), RegAddrMin: 1, RegProtoMin: 2}
	if f.v4 {
		nat.Family = uint32(unix.NFPROTO_IPV4)
	}
	exprs := append([]expr.Any{loadMark(0), rules.Map(endpoints, 0, 0)}, f.frontendKey(4)...)
	return statement{fmt.Sprintf("dnat to meta mark map @%s : %s map @%s", endpoints, f.frontendText(), ports),
		append(exprs, rules.Map(ports, 4, 4), &nat)}
}

// flowMark is the connection mark of a flow from the choice of its endpoint until it is masqueraded. It keeps flows of other
// programs from being masqueraded. Later packets of the flow have no mark.
const flowMark = 0x6b756265

// transparentMark is the connection mark of a flow that is not masqueraded, until the packet's mark is cleared.
const transparentMark = 0x6b756274

func setFlowMark(value uint32) statement {
	return statement{fmt.Sprintf("ct mark set 0x%08x", value), setCtMark(&expr.Immediate{Register: 1, Data: mark(value)})}
}

func hasFlowMark(value uint32) statement {
	return statement{fmt.Sprintf("ct mark 0x%08x", value), []expr.Any{
		loadCtMark(0), rules.Equals(mark(value)...)}}
}

func clearMark() statement {
	return statement{"meta mark set 0x00000000", setMark(&expr.Immediate{Register: 1, Data: mark(0)})}
}

func clearCtMark() statement {
	return statement{"ct mark set 0x00000000", setCtMark(&expr.Immediate{Register: 1, Data: mark(0)})}
}

// masquerade rewrites the source to the source address of the route. The client's port stays if it is free, and otherwise the kernel takes a random
// one. Nodes keep a connection for a while after its end: with the client's port, they see a port again only when the client uses it again.
func masquerade() statement { return statement{"masquerade", []expr.Any{&expr.Masq{}}} }

// masqueraded returns the protocols. Each has its own rule.
func masqueraded() []statement {
	return []statement{isProtocol("tcp", unix.IPPROTO_TCP), isProtocol("udp", unix.IPPROTO_UDP)}
}

func redirect() statement { return statement{"redirect", []expr.Any{&expr.Redir{}}} }

func limitTo(perSecond uint64) statement {
	return statement{fmt.Sprintf("limit rate %d/second", perSecond), []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: 5}}}
}

func count(counter string) statement {
	return statement{"counter name " + counter, []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}}
}

func rejectReset() statement {
	return statement{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

func (f family) rejectUnreachable() statement {
	return statement{"reject with " + f.unreachable, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.rejectCode}}}
}

func accept() statement           { return statement{"accept", []expr.Any{rules.Accept()}} }
func drop() statement             { return statement{"drop", []expr.Any{rules.Drop()}} }
func returnToCaller() statement   { return statement{"return", []expr.Any{rules.Return()}} }
func jump(chain string) statement { return statement{"jump " + chain, []expr.Any{rules.Jump(chain)}} }
func goTo(chain string) statement { return statement{"goto " + chain, []expr.Any{rules.Goto(chain)}} }
