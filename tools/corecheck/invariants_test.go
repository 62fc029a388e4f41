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

// violations returns the rules that an output violates: the model is valid, no frontend occurs twice, a tenant may target each
// of its endpoints, and each LoadBalancer is served or has a problem.
func violations(in explain.Input, out explain.Output) []string {
	var found []string
	fail := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if err := out.Model.Validate(); err != nil {
		fail("the model is not valid: %v", err)
	}
	if out.Text != out.Model.Text() || out.Text != out.Model.Canonical().Text() {
		fail("the text differs from the text of the model in canonical order")
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
	found = append(found, forbiddenEndpoints(in, out)...)
	return append(found, unexplained(out)...)
}

// forbiddenEndpoints returns the endpoints that their tenant may not target. It implements the rules independently of the core.
func forbiddenEndpoints(in explain.Input, out explain.Output) []string {
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
			continue // none of its addresses is allocated
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
				found = append(found, fmt.Sprintf("pool %s of tenant %s has endpoint %s", p.ID, p.Tenant, text))
			}
		}
	}
	return found
}

// unexplained returns the LoadBalancers that are not served and have no problem.
func unexplained(out explain.Output) []string {
	hasProblem, served := map[model.ObjectName]bool{}, map[model.ObjectName]bool{}
	for _, p := range out.Problems {
		hasProblem[p.ObjectName] = true
	}
	for _, f := range out.Model.Frontends {
		served[f.Owner] = true
	}
	var found []string
	for _, lb := range out.LoadBalancers {
		if !served[lb.ObjectName] && !hasProblem[lb.ObjectName] {
			found = append(found, fmt.Sprintf("LoadBalancer %s is not served, and no problem says why", lb.ObjectName))
		}
	}
	return found
}

// withOutput returns the input with the objects that CCMs and the controllers have written. Explain must return the same output for it.
func withOutput(in explain.Input, out explain.Output) explain.Input {
	next := in
	next.Clusters = nil
	next.Addresses, next.LoadBalancers = out.Addresses, out.LoadBalancers
	return next
}

// answer returns the output of Explain, also as JSON for comparison.
func answer(in explain.Input) (explain.Output, string, error) {
	out, err := explain.Explain(in)
	if err != nil {
		return out, "", err
	}
	text, err := json.Marshal(out)
	return out, string(text), err
}
