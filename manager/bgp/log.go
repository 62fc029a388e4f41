package bgp

import (
	"context"
	"log/slog"
	"net/netip"
)

// listener is GoBGP's log, of which the causes are told what is said of a router. The records that count are: "failed to connect" with its Error,
// "outgoing connection IO error", "Peer Up", "Peer Down", and "sent notification" and "received notification" with Code and Subcode. The tests of this package hold that against
// the release of GoBGP that is used.
type listener struct {
	slog.Handler
	causes *causes
	// router is the one of whom all records of this handler are.
	router netip.Addr
}

// WithAttrs implements slog.Handler. GoBGP names a router by the attribute Key.
func (l listener) WithAttrs(attributes []slog.Attr) slog.Handler {
	for _, a := range attributes {
		if address, err := netip.ParseAddr(a.Value.String()); a.Key == "Key" && err == nil {
			l.router = address
		}
	}
	l.Handler = l.Handler.WithAttrs(attributes)
	return l
}

// WithGroup implements slog.Handler.
func (l listener) WithGroup(name string) slog.Handler {
	l.Handler = l.Handler.WithGroup(name)
	return l
}

// Enabled implements slog.Handler. While there is a session much is said at level debug, and none of it is a cause.
func (l listener) Enabled(ctx context.Context, level slog.Level) bool {
	return l.Handler.Enabled(ctx, level) || l.router.IsValid() && (level >= slog.LevelInfo || l.causes.down(l.router))
}

// Handle implements slog.Handler.
func (l listener) Handle(ctx context.Context, r slog.Record) error {
	if l.router.IsValid() {
		l.note(r)
	}
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

func (l listener) note(r slog.Record) {
	switch r.Message {
	// These come in the order in which things happen. Events of a session come when there is time, and what was said since must not be forgotten then.
	case "Peer Up", "Peer Down":
		l.causes.change(l.router, func(c *cause) { c.established(r.Message == "Peer Up") })
	case "failed to connect":
		l.causes.change(l.router, func(c *cause) { c.failed(dialled(c.peer, valueOf(r, "Error").String())) })
	case "outgoing connection IO error":
		l.causes.change(l.router, func(c *cause) { c.broke(ended) })
	case "sent notification", "received notification":
		n := notification{own: r.Message == "sent notification", code: number(r, "Code"), subcode: number(r, "Subcode"), communication: valueOf(r, "Communicated-Reason").String()}
		l.causes.change(l.router, func(c *cause) { c.notified(n) })
	}
}

// valueOf is an attribute of a record, empty text where there is none.
func valueOf(r slog.Record, key string) slog.Value {
	value := slog.StringValue("")
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == key {
			value = a.Value
		}
		return a.Key != key
	})
	return value
}

func number(r slog.Record, key string) uint8 {
	if value := valueOf(r, key); value.Kind() == slog.KindInt64 {
		return uint8(value.Int64())
	}
	return 0
}
