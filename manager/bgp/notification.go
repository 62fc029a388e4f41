package bgp

import (
	"fmt"
	"net/netip"
	"strings"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// notification is a NOTIFICATION, with which a side ends a session (RFC 4271, 4.5).
type notification struct {
	// own: this gateway sent it.
	own           bool
	code, subcode uint8
	// communication is the shutdown communication, a text (RFC 9003).
	communication string
}

// Codes and subcodes of a NOTIFICATION (RFC 4271, 4.5; RFC 4486).
const (
	openError   = wire.BGP_ERROR_OPEN_MESSAGE_ERROR
	holdExpired = wire.BGP_ERROR_HOLD_TIMER_EXPIRED
	fsmError    = wire.BGP_ERROR_FSM_ERROR
	cease       = wire.BGP_ERROR_CEASE
	collision   = wire.BGP_ERROR_SUB_CONNECTION_COLLISION_RESOLUTION
)

// openMessage has the fields of a router's OPEN.
type openMessage struct {
	asn      uint32
	id       netip.Addr
	holdTime uint16
}

// advice explains a NOTIFICATION: one that this gateway sent (own), or one that the router sent (other).
type advice struct {
	name       string
	own, other func(Peer, *openMessage) string
}

func always(text string) func(Peer, *openMessage) string {
	return func(Peer, *openMessage) string { return text }
}

// adviceOn returns the advice for a code and its subcode.
func adviceOn(code, subcode uint8) (advice, bool) {
	a, known := map[[2]uint8]advice{
		{openError, wire.BGP_ERROR_SUB_BAD_PEER_AS}: {"bad peer AS", wrongPeerASN, func(p Peer, _ *openMessage) string {
			return fmt.Sprintf("the router expects another AS than spec.localASN, which is %d", p.LocalASN)
		}},
		{openError, wire.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER}: {"bad BGP identifier", sameIdentifier, always("the router has the same identifier, or does not accept this gateway's: set --bgp-router-id")},
		{openError, wire.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME}: {"unacceptable hold time", func(_ Peer, o *openMessage) string {
			if o == nil {
				return "the router's hold time is shorter than 3s"
			}
			return fmt.Sprintf("the router's hold time is %ds, and at least 3s is required", o.holdTime)
		}, func(p Peer, _ *openMessage) string {
			return fmt.Sprintf("the router does not accept a hold time of %s: change spec.holdTime", p.HoldTime)
		}},
		{openError, wire.BGP_ERROR_SUB_UNSUPPORTED_CAPABILITY}: {"unsupported capability", nil, always("one side requires a capability that the other does not have: compare spec.families, spec.gracefulRestartTime and the router's settings for this neighbour")},
		{holdExpired, 0}: {"hold timer expired", func(p Peer, _ *openMessage) string {
			return fmt.Sprintf("the router sent nothing for the hold time (%s at most)", p.HoldTime)
		},
			always("the router received nothing from this gateway for the hold time")},
		{cease, wire.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED}: {"maximum number of prefixes reached",
			always(fmt.Sprintf("the router sends more than %d routes of a family: configure it to send none. The next attempt is after %s", maxReceivedRoutes, tooManyRoutesPause)),
			always("the router accepts fewer routes than there are addresses: raise its limit for this neighbour")},
		{cease, wire.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN}: {"administrative shutdown", nil, always("an operator has shut the session down at the router")},
		{cease, wire.BGP_ERROR_SUB_PEER_DECONFIGURED}:       {"peer deconfigured", nil, always("the router does not have this gateway's address as a neighbour any more")},
		{cease, wire.BGP_ERROR_SUB_CONNECTION_REJECTED}:     {"connection rejected", nil, always("the router does not accept a session now: check that it has this gateway's address as a neighbour")},
	}[[2]uint8{code, subcode}]
	return a, known
}

func wrongPeerASN(p Peer, o *openMessage) string {
	if o == nil {
		return fmt.Sprintf("the router is of another AS than spec.peerASN, which is %d", p.PeerASN)
	}
	return fmt.Sprintf("the router is of AS %d, and spec.peerASN is %d", o.asn, p.PeerASN)
}

func sameIdentifier(_ Peer, o *openMessage) string {
	if o == nil {
		return "the router has the same identifier as this gateway: set --bgp-router-id"
	}
	return fmt.Sprintf("the router has the same identifier as this gateway, %s: set --bgp-router-id", o.id)
}

// text returns the name of the NOTIFICATION, who sent it, and what to do.
func (n notification) text(p Peer, o *openMessage) string {
	a, known := adviceOn(n.code, n.subcode)
	if !known {
		a.name = names(n.code, n.subcode)
	}
	by, means := "the router", a.other
	if n.own {
		by, means = "this gateway", a.own
	}
	text := a.name
	if means != nil {
		text += ": " + means(p, o)
	}
	if n.communication != "" {
		text += fmt.Sprintf(", %q", n.communication)
	}
	return fmt.Sprintf("%s (NOTIFICATION %d/%d, sent by %s)", text, n.code, n.subcode, by)
}

// names returns GoBGP's names of a code and its subcode.
func names(code, subcode uint8) string {
	text := wire.NewNotificationErrorCode(code, subcode).String() // such as: code 6(cease) subcode 8(out of resources)
	var words []string
	for part := range strings.SplitSeq(text, "(") {
		if word, _, is := strings.Cut(part, ")"); is && word != "undefined" {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return "an error without a name"
	}
	return strings.Join(words, ", ")
}
