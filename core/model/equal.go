package model

import "slices"

// Equal tells whether the frontends are the same in every field. It costs less than to compare their texts, which name each source range.
func (f Frontend) Equal(o Frontend) bool {
	return f.FrontendKey == o.FrontendKey && f.Owner == o.Owner && f.Tenant == o.Tenant && f.Pool == o.Pool && f.TargetPort == o.TargetPort && f.Forwarding == o.Forwarding &&
		f.AffinityTimeout == o.AffinityTimeout && f.Restricted == o.Restricted && f.IdleTimeout == o.IdleTimeout && f.ProxyProtocol == o.ProxyProtocol &&
		f.MaxConnections == o.MaxConnections && f.MaxNewPerSecond == o.MaxNewPerSecond && f.Handover == o.Handover && slices.Equal(f.SourceRanges, o.SourceRanges)
}
