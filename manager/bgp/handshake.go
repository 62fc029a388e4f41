package bgp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// listenTo reads the router's messages in handshakes until ctx ends, and updates the causes. GoBGP does not report a NOTIFICATION before a session is
// established. A raw socket (ip(7), raw(7)) gets a copy of each segment from the router to this host. The messages are used only for texts in the status,
// since other hosts can forge the router's address.
func (c *causes) listenTo(ctx context.Context, p Peer) {
	network := "ip4:tcp"
	if p.Address.Is6() {
		network = "ip6:tcp"
	}
	conn, err := net.DialIP(network, nil, &net.IPAddr{IP: p.Address.AsSlice(), Zone: p.Address.Zone()})
	if err != nil {
		c.change(p.Address, func(c *cause) { c.unreadable = fmt.Sprintf("%v (needs CAP_NET_RAW)", err) })
		return
	}
	c.change(p.Address, func(c *cause) { c.unreadable = "" })
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close()
		}
	}()
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFromIP(buffer)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// Errors of the route also come here. The connection attempt reports them.
			select {
			case <-ctx.Done():
				return
			case <-time.After(withdrawalPause):
				continue
			}
		}
		for _, m := range messagesIn(buffer[:n], p.Port) {
			c.receive(p.Address, m)
		}
	}
}

// receive handles a message of a router.
func (c *causes) receive(router netip.Addr, m message) {
	switch m.kind {
	case kindOpen:
		if open, is := readOpen(m.body); is {
			c.change(router, func(c *cause) { c.open = &open })
		}
	case kindNotification:
		if n, is := readNotification(m.body); is {
			c.change(router, func(c *cause) { c.onNotification(n) })
		}
	}
}

// message is a BGP message (RFC 4271, 4.1) without its header.
type message struct {
	kind byte
	body []byte
}

const (
	kindOpen, kindNotification = 1, 3
	markerLength, headerLength = 16, 19
	tcpHeader                  = 20
)

// messagesIn returns the messages in a TCP segment from a port. It skips a message that continues in another segment: messages of a handshake are small.
func messagesIn(segment []byte, from uint16) (all []message) {
	if len(segment) < tcpHeader || binary.BigEndian.Uint16(segment) != from {
		return nil
	}
	options := int(segment[12]>>4) * 4
	if options < tcpHeader || options > len(segment) {
		return nil
	}
	payload := segment[options:]
	marker := bytes.Repeat([]byte{0xff}, markerLength)
	for len(payload) >= headerLength && bytes.HasPrefix(payload, marker) {
		length := int(binary.BigEndian.Uint16(payload[markerLength:]))
		if length < headerLength || length > len(payload) {
			return all
		}
		all = append(all, message{kind: payload[headerLength-1], body: bytes.Clone(payload[headerLength:length])})
		payload = payload[length:]
	}
	return all
}

// readNotification reads the body of a NOTIFICATION (RFC 4271, 4.5), with the shutdown communication (RFC 9003) if there is one.
func readNotification(body []byte) (notification, bool) {
	if len(body) < 2 {
		return notification{}, false
	}
	n := notification{code: body[0], subcode: body[1]}
	const shutdown, reset = 2, 4
	if text := body[2:]; n.code == cease && (n.subcode == shutdown || n.subcode == reset) && len(text) > 0 {
		n.communication = string(text[1:min(len(text), 1+int(text[0]))])
	}
	return n, true
}

// readOpen reads the body of an OPEN (RFC 4271, 4.2). The AS number of four bytes is in a capability (RFC 5492 and 6793).
func readOpen(body []byte) (openMessage, bool) {
	const fixed, fourOctets = 10, 65
	if len(body) < fixed {
		return openMessage{}, false
	}
	o := openMessage{asn: uint32(binary.BigEndian.Uint16(body[1:])), holdTime: binary.BigEndian.Uint16(body[3:]), id: netip.AddrFrom4([4]byte(body[5:9]))}
	for parameters := body[fixed:]; len(parameters) >= 2; {
		length := min(len(parameters), 2+int(parameters[1]))
		for capabilities := parameters[2:length]; parameters[0] == 2 && len(capabilities) >= 2; {
			end := min(len(capabilities), 2+int(capabilities[1]))
			if value := capabilities[2:end]; capabilities[0] == fourOctets && len(value) == 4 {
				o.asn = binary.BigEndian.Uint32(value)
			}
			capabilities = capabilities[end:]
		}
		parameters = parameters[length:]
	}
	return o, true
}
