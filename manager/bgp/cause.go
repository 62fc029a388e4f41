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

// causes are why routers have no session. GoBGP tells of a session that was there why it ended. Of one that never began it only logs what it sent,
// and of what it got it does not tell at all. So the causes come from its log, from its events, and from what is heard of the router's own messages.
// Whoever tells is not kept waiting: the mutex guards nothing else.
type causes struct {
	mu sync.Mutex // guards of, and what it holds
	of map[netip.Addr]*cause
	// changed is told when a reason says something else than before; it must not block.
	changed func()
}

// cause is why one router has no session.
type cause struct {
	peer Peer
	// up: there is a session.
	up bool
	// unreachable is why no packet leaves for the router, as the host's routes say. It counts before all else.
	unreachable string
	// said is what one side said when it ended a connection.
	said *notification
	// fault is why there is no connection, or it broke, since something was said. A vague one says less than what was said before it.
	fault string
	vague bool
	// open is what the router said of itself last.
	open *opening
	// deaf is why the router's messages cannot be heard.
	deaf string
}

// watch begins to keep the cause of a peer.
func (c *causes) watch(p Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[p.Address] = &cause{peer: p}
}

// forget ends that.
func (c *causes) forget(address netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, address)
}

// change changes what is known of a router, and tells if another reason follows from that.
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

// reason is why there is no session with a router, empty where that is not known, or there is one.
func (c *causes) reason(address netip.Addr) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if is := c.of[address]; is != nil {
		return is.reason()
	}
	return ""
}

// down tells whether a watched router has no session.
func (c *causes) down(address netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := c.of[address]
	return is != nil && !is.up
}

// established: what kept the session from being there does not any more.
func (c *cause) established(up bool) {
	if c.up = up; up {
		c.said, c.fault, c.vague = nil, "", false
	}
}

// ended takes why a session ended that was there, or nearly.
func (c *cause) ended(because api.PeerState_DisconnectReason) {
	if c.up {
		return // there is another one by now
	}
	switch because {
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		c.follows(lost)
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		c.follows(unexpected)
	}
}

// notified takes what one side said. What only says that the other one broke the protocol's order is vague: the router's own word, if it is heard,
// says more.
func (c *cause) notified(n notification) {
	if n.code == fsmError || n.code == cease && n.subcode == collision {
		if n.own {
			c.follows(unexpected)
		}
		return
	}
	c.said, c.fault, c.vague = &n, "", false
}

// broke: a connection has ended, and nobody said why.
func (c *cause) broke(what string) { c.fault, c.vague = what, true }

// follows is broke where that may only be what follows from what was said last.
func (c *cause) follows(what string) {
	if c.said == nil || c.fault != "" {
		c.broke(what)
	}
}

// What is known of a connection that nobody has said a word about.
const (
	ended      = "the router ends connections without a NOTIFICATION: does it know this gateway's address as a neighbour? Its log may say more"
	lost       = "the connection to the router broke without a NOTIFICATION"
	unexpected = "the router sent something else than a handshake asks for"
)

// failed: there is no connection.
func (c *cause) failed(what string) { c.fault, c.vague = what, false }

func (c *cause) reason() string {
	switch {
	case c.up:
		return ""
	case c.unreachable != "":
		return c.unreachable
	case c.said == nil && c.fault == "":
		return ""
	case c.said == nil && !c.vague:
		return c.fault
	case c.said == nil:
		return c.fault + c.unheard()
	case c.fault == "":
		return c.said.text(c.peer, c.open)
	}
	said := c.said.text(c.peer, c.open)
	if c.vague {
		return said + "; since then: " + c.fault
	}
	// Some routers close their port once they have ended a session for good.
	return c.fault + "; before that: " + said
}

// unheard is why a fault may be vague.
func (c *cause) unheard() string {
	if c.deaf == "" {
		return ""
	}
	return "; what the router says in a handshake is not heard: " + c.deaf
}

// dialled is a failure to connect, in words. GoBGP hands over the text of the error alone.
func dialled(p Peer, failure string) string {
	has := func(e syscall.Errno) bool { return strings.HasSuffix(failure, e.Error()) }
	switch {
	case has(syscall.ECONNREFUSED):
		return fmt.Sprintf("connection refused at port %d: no BGP daemon listens there for this gateway; check spec.port and the router", p.Port)
	case has(syscall.EHOSTUNREACH):
		return fmt.Sprintf("%s does not answer on its link (no route to host): is it up, and on this segment?", p.Address)
	case has(syscall.ENETUNREACH):
		return fmt.Sprintf("no route to %s", p.Address)
	case has(syscall.ETIMEDOUT), strings.HasSuffix(failure, "i/o timeout"):
		return fmt.Sprintf("no answer at port %d: the router is away, or a filter or another password keeps it silent (it drops segments that are not signed as it expects, and sends no NOTIFICATION); %s",
			p.Port, cmp.Or(map[bool]string{true: "spec.passwordSecret is not set"}[p.Password == ""], "compare the password in spec.passwordSecret"))
	}
	return "no connection: " + failure
}
