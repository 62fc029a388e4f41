package bgp

import (
	"context"
	"log/slog"
	"net/netip"
)

// logHandler is GoBGP's log handler. It updates the causes from these records: "failed to connect" with its Error, "outgoing connection IO error",
// "Peer Up", "Peer Down", and "sent notification" and "received notification" with Code and Subcode. Tests of this package check that the release of
// GoBGP in use writes these records.
type logHandler struct {
	slog.Handler
	causes *causes
	// router is the router of all records of this handler.
	router netip.Addr
}

// WithAttrs implements slog.Handler. GoBGP puts the router's address into the attribute Key.
func (l logHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	for _, a := range attributes {
		if address, err := netip.ParseAddr(a.Value.String()); a.Key == "Key" && err == nil {
			l.router = address
		}
	}
	l.Handler = l.Handler.WithAttrs(attributes)
	return l
}

// WithGroup implements slog.Handler.
func (l logHandler) WithGroup(name string) slog.Handler {
	l.Handler = l.Handler.WithGroup(name)
	return l
}

// Enabled implements slog.Handler. During a session GoBGP logs much at level debug, none of which is a cause.
func (l logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return l.Handler.Enabled(ctx, level) || l.router.IsValid() && (level >= slog.LevelInfo || l.causes.isDown(l.router))
}

// Handle implements slog.Handler.
func (l logHandler) Handle(ctx context.Context, r slog.Record) error {
	if l.router.IsValid() {
		l.record(r)
	}
	if !l.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

func (l logHandler) record(r slog.Record) {
	switch r.Message {
	// Log records come in order. Events of a session may come later than a NOTIFICATION after them, which must not be lost then.
	case "Peer Up", "Peer Down":
		l.causes.change(l.router, func(c *cause) { c.setEstablished(r.Message == "Peer Up") })
	case "failed to connect":
		l.causes.change(l.router, func(c *cause) { c.connectFailed(dialReason(c.peer, valueOf(r, "Error").String())) })
	case "outgoing connection IO error":
		l.causes.change(l.router, func(c *cause) { c.connectionLost(ended) })
	case "sent notification", "received notification":
		n := notification{own: r.Message == "sent notification", code: number(r, "Code"), subcode: number(r, "Subcode"), communication: valueOf(r, "Communicated-Reason").String()}
		l.causes.change(l.router, func(c *cause) { c.onNotification(n) })
	}
}

// valueOf returns an attribute of a record, or an empty text.
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
