package model

import "slices"

// Equal reports whether all fields are equal. It is cheaper than comparing the texts, which list every source range.
func (f Frontend) Equal(o Frontend) bool {
	return f.FrontendKey == o.FrontendKey && f.Owner == o.Owner && f.Tenant == o.Tenant && f.Pool == o.Pool && f.TargetPort == o.TargetPort && f.Forwarding == o.Forwarding &&
		f.AffinityTimeout == o.AffinityTimeout && f.Restricted == o.Restricted && f.IdleTimeout == o.IdleTimeout && f.ProxyProtocol == o.ProxyProtocol &&
		f.MaxConnections == o.MaxConnections && f.MaxNewPerSecond == o.MaxNewPerSecond && f.Redirect == o.Redirect && slices.Equal(f.SourceRanges, o.SourceRanges)
}
