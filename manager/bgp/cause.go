package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/osrg/gobgp/v4/api"
)

// causes has the reasons why routers have no session. GoBGP reports why an established session ended. For a session that was never established, it only
// logs the NOTIFICATION that it sent, and not the one that it received. So the causes come from its log, from its events, and from the messages of routers
// on a raw socket. The mutex is held only briefly, so that callers do not wait.
type causes struct {
	mu sync.Mutex // guards of and its values
	of map[netip.Addr]*cause
	// changed is called when a reason has changed. It must not block.
	changed func()
}

// cause is why one router has no session.
type cause struct {
	peer Peer
	// up: the session is established.
	up bool
	// unreachable is why the host has no route to the router. It comes before all other reasons.
	unreachable string
	// notification is the last NOTIFICATION of either side.
	notification *notification
	// fault is why the connection failed or broke after that. A vague fault is less exact than the NOTIFICATION before it.
	fault string
	vague bool
	// open is the last OPEN of the router.
	open *openMessage
	// unreadable is why the router's messages cannot be received on a raw socket.
	unreadable string
}

// add adds a peer.
func (c *causes) add(p Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[p.Address] = &cause{peer: p}
}

// remove removes a peer.
func (c *causes) remove(address netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, address)
}

// change changes the cause of a router, and calls changed if its reason has changed.
func (c *causes) change(address netip.Addr, change func(*cause)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := c.of[address]
	if is == nil {
		return
	}
	before := is.reason()
	change(is)
	if is.reason() != before {
		c.changed()
	}
}

// reason returns why there is no session with a router, empty if that is not known or the session is established.
func (c *causes) reason(address netip.Addr) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if is := c.of[address]; is != nil {
		return is.reason()
	}
	return ""
}

// isDown reports whether the router is a peer without a session.
func (c *causes) isDown(address netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := c.of[address]
	return is != nil && !is.up
}

// setEstablished sets whether the session is established. If it is, former reasons do not count any more.
func (c *cause) setEstablished(up bool) {
	if c.up = up; up {
		c.notification, c.fault, c.vague = nil, "", false
	}
}

// onSessionEnd handles the reason with which GoBGP ended a session.
func (c *cause) onSessionEnd(because api.PeerState_DisconnectReason) {
	if c.up {
		return // there is a new session already
	}
	switch because {
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		c.connectionLostAfter(lost)
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		c.connectionLostAfter(unexpected)
	}
}

// onNotification handles a NOTIFICATION of either side. One that only reports an unexpected message is vague: the router's own NOTIFICATION, if it is received, is
// more exact.
func (c *cause) onNotification(n notification) {
	if n.code == fsmError || n.code == cease && n.subcode == collision {
		if n.own {
			c.connectionLostAfter(unexpected)
		}
		return
	}
	c.notification, c.fault, c.vague = &n, "", false
}

// connectionLost handles a connection that ended without a NOTIFICATION.
func (c *cause) connectionLost(what string) { c.fault, c.vague = what, true }

// connectionLostAfter does the same as connectionLost, unless the end of the connection may be the consequence of the last NOTIFICATION.
func (c *cause) connectionLostAfter(what string) {
	if c.notification == nil || c.fault != "" {
		c.connectionLost(what)
	}
}

// Reasons for connections that ended without a NOTIFICATION.
const (
	ended      = "the router ends connections without a NOTIFICATION: check that it has this gateway's address as a neighbour, and its log"
	lost       = "the connection to the router broke without a NOTIFICATION"
	unexpected = "the router sent an unexpected message in the handshake"
)

// connectFailed handles a failed connection attempt.
func (c *cause) connectFailed(what string) { c.fault, c.vague = what, false }

func (c *cause) reason() string {
	switch {
	case c.up:
		return ""
	case c.unreachable != "":
		return c.unreachable
	case c.notification == nil && c.fault == "":
		return ""
	case c.notification == nil && !c.vague:
		return c.fault
	case c.notification == nil:
		return c.fault + c.unreadableText()
	case c.fault == "":
		return c.notification.text(c.peer, c.open)
	}
	text := c.notification.text(c.peer, c.open)
	if c.vague {
		return text + "; since then: " + c.fault
	}
	// Some routers close their port after they have ended a session for good.
	return c.fault + "; before that: " + text
}

// unreadableText returns why a fault may be vague.
func (c *cause) unreadableText() string {
	if c.unreadable == "" {
		return ""
	}
	return "; messages of the router in the handshake cannot be read: " + c.unreadable
}

// dialReason returns the reason for a failed connection attempt. GoBGP passes only the text of the error.
func dialReason(p Peer, failure string) string {
	has := func(e syscall.Errno) bool { return strings.HasSuffix(failure, e.Error()) }
	switch {
	case has(syscall.ECONNREFUSED):
		return fmt.Sprintf("connection refused at port %d: no BGP daemon listens there for this gateway; check spec.port and the router", p.Port)
	case has(syscall.EHOSTUNREACH):
		return fmt.Sprintf("%s does not answer on its link (no route to host): check that it is up and on this segment", p.Address)
	case has(syscall.ENETUNREACH):
		return fmt.Sprintf("no route to %s", p.Address)
	case has(syscall.ETIMEDOUT), strings.HasSuffix(failure, "i/o timeout"):
		return fmt.Sprintf("no answer at port %d: the router is down, or a filter drops packets, or the passwords differ (then the router drops segments without a NOTIFICATION); %s",
			p.Port, cmp.Or(map[bool]string{true: "spec.passwordSecret is not set"}[p.Password == ""], "compare the password in spec.passwordSecret"))
	}
	return "no connection: " + failure
}
