package bgp

import (
	"fmt"
	"net/netip"
	"strings"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// notification is what one side says when it ends a session (RFC 4271, 4.5).
type notification struct {
	// own: this gateway said it.
	own           bool
	code, subcode uint8
	// communication is a text for people (RFC 9003).
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

// opening is what a router says of itself in its OPEN.
type opening struct {
	asn      uint32
	id       netip.Addr
	holdTime uint16
}

// advice is what a NOTIFICATION means where there is more to say than its name: by itself, or by the router.
type advice struct {
	name       string
	own, other func(Peer, *opening) string
}

func always(text string) func(Peer, *opening) string {
	return func(Peer, *opening) string { return text }
}

// adviceOn finds the words for a code and its subcode.
func adviceOn(code, subcode uint8) (advice, bool) {
	a, known := map[[2]uint8]advice{
		{openError, wire.BGP_ERROR_SUB_BAD_PEER_AS}: {"bad peer AS", wrongPeerASN, func(p Peer, _ *opening) string {
			return fmt.Sprintf("the router expects another AS than %d, which spec.localASN says", p.LocalASN)
		}},
		{openError, wire.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER}: {"bad BGP identifier", sameIdentifier, always("the router has the same one, or does not take this gateway's: set --bgp-router-id")},
		{openError, wire.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME}: {"unacceptable hold time", func(_ Peer, o *opening) string {
			if o == nil {
				return "the router's is shorter than 3s"
			}
			return fmt.Sprintf("the router's is %ds, and 3s is the shortest", o.holdTime)
		}, func(p Peer, _ *opening) string {
			return fmt.Sprintf("the router takes none of %s: change spec.holdTime", p.HoldTime)
		}},
		{openError, wire.BGP_ERROR_SUB_UNSUPPORTED_CAPABILITY}: {"unsupported capability", nil, always("the router asks for a capability that this gateway does not have, or the other way round: compare spec.families, spec.gracefulRestartTime and the router's settings for this neighbour")},
		{holdExpired, 0}: {"hold timer expired", func(p Peer, _ *opening) string {
			return fmt.Sprintf("nothing was heard of the router for the hold time (%s at most)", p.HoldTime)
		},
			always("the router has heard nothing of this gateway for the hold time")},
		{cease, wire.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED}: {"maximum number of prefixes reached",
			always(fmt.Sprintf("the router offers more than %d routes of a family: have it send none. Another attempt is made after %s", mostReceived, offeredTooMuch)),
			always("the router takes fewer routes than there are addresses: raise its limit for this neighbour")},
		{cease, wire.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN}: {"administrative shutdown", nil, always("somebody has shut the session down at the router")},
		{cease, wire.BGP_ERROR_SUB_PEER_DECONFIGURED}:       {"peer deconfigured", nil, always("the router has no neighbour of this gateway's address any more")},
		{cease, wire.BGP_ERROR_SUB_CONNECTION_REJECTED}:     {"connection rejected", nil, always("the router does not want a session now: does it know this gateway's address as a neighbour?")},
	}[[2]uint8{code, subcode}]
	return a, known
}

func wrongPeerASN(p Peer, o *opening) string {
	if o == nil {
		return fmt.Sprintf("the router is of another AS than %d, which spec.peerASN says", p.PeerASN)
	}
	return fmt.Sprintf("the router is of AS %d, and spec.peerASN is %d", o.asn, p.PeerASN)
}

func sameIdentifier(_ Peer, o *opening) string {
	if o == nil {
		return "the router has the same one as this gateway: set --bgp-router-id"
	}
	return fmt.Sprintf("the router has the same one as this gateway, %s: set --bgp-router-id", o.id)
}

// text is what was said, by whom, and what to do.
func (n notification) text(p Peer, o *opening) string {
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

// names are those of a code and its subcode, as GoBGP knows them.
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
