package corecheck

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"kubelb.k8c.io/core/explain"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/core/model"
	"kubelb.k8c.io/core/translate"
)

// violations are the ways in which an output breaks what must hold of any: it is valid, no frontend is served twice, every
// endpoint is one that its tenant may target, and nothing is lost without a word.
func violations(in explain.Input, out explain.Output) []string {
	var found []string
	fail := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if err := out.Model.Validate(); err != nil {
		fail("the model is not valid: %v", err)
	}
	if out.Text != out.Model.Text() || out.Text != out.Model.Canonical().Text() {
		fail("the text is not that of the model in canonical order")
	}
	keys := map[string]bool{}
	for _, f := range out.Model.Frontends {
		if keys[f.FrontendKey.String()] {
			fail("%s is served twice", f.FrontendKey)
		}
		keys[f.FrontendKey.String()] = true
		if f.Owner.Namespace != "tenant-"+f.Tenant {
			fail("%s of %s is served for tenant %s", f.FrontendKey, f.Owner, f.Tenant)
		}
	}
	found = append(found, leaks(in, out)...)
	return append(found, losses(out)...)
}

// leaks are endpoints that their tenant may not target. The rules are written down here once more, in other words.
func leaks(in explain.Input, out explain.Output) []string {
	var found []string
	allowed := map[string][]netip.Prefix{}
	for _, t := range in.Tenants {
		allowed[t.Name] = t.BackendCIDRs
	}
	var external []ipam.Range
	for _, lb := range in.LoadBalancers {
		for _, vip := range lb.VIPs {
			external = append(external, ipam.Range{First: vip, Last: vip})
		}
	}
	for _, p := range in.AddressPools {
		covers := func(o explain.Problem) bool {
			return o.Kind == "AddressPool" && o.ObjectName.Name == p.Name && o.Reason == translate.ReasonCoversUsed
		}
		if slices.ContainsFunc(out.Problems, covers) {
			continue // it gives nothing
		}
		if ranges, err := ipam.ParseRanges(p.Addresses, p.AvoidNetworkAddresses); err == nil {
			external = append(external, ranges...)
		}
	}
	for _, p := range out.Model.Pools {
		for _, e := range p.Endpoints {
			inside := false
			for _, prefix := range allowed[p.Tenant] {
				inside = inside || prefix.Contains(e.Address)
			}
			forbidden := false
			for _, prefix := range in.Forbidden {
				forbidden = forbidden || prefix.Contains(e.Address)
			}
			for _, r := range external {
				forbidden = forbidden || r.Contains(e.Address)
			}
			text := e.Address.String()
			special := !e.Address.IsGlobalUnicast() || strings.HasPrefix(text, "0.") || strings.HasPrefix(text, "64:ff9b::") || e.Address.Zone() != "" ||
				e.Address.Is4() && e.Address.As4()[0] >= 240
			if !inside || forbidden || special || !strings.HasPrefix(string(p.ID), p.Tenant+"/") {
				found = append(found, fmt.Sprintf("pool %s of tenant %s holds %s", p.ID, p.Tenant, text))
			}
		}
	}
	return found
}

// losses are LoadBalancers with an address, of which nothing is served and nothing is said.
func losses(out explain.Output) []string {
	told, served := map[model.ObjectName]bool{}, map[model.ObjectName]bool{}
	for _, p := range out.Problems {
		told[p.ObjectName] = true
	}
	for _, f := range out.Model.Frontends {
		served[f.Owner] = true
	}
	var found []string
	for _, lb := range out.LoadBalancers {
		if !served[lb.ObjectName] && !told[lb.ObjectName] {
			found = append(found, fmt.Sprintf("LoadBalancer %s is not served, and no problem says why", lb.ObjectName))
		}
	}
	return found
}

// settled is the input once more, with what CCMs and manager have written: nothing may change any more.
func settled(in explain.Input, out explain.Output) explain.Input {
	again := in
	again.Clusters = nil
	again.Addresses, again.LoadBalancers = out.Addresses, out.LoadBalancers
	return again
}

// answer is what Explain says, as text that can be compared.
func answer(in explain.Input) (explain.Output, string, error) {
	out, err := explain.Explain(in)
	if err != nil {
		return out, "", err
	}
	text, err := json.Marshal(out)
	return out, string(text), err
}
