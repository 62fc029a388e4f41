package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/osrg/gobgp/v4/api"
)

// policy is the export policy: the routes to each router. Routes that match no rule are not sent.
type policy struct {
	sets  []*api.DefinedSet
	rules []*api.Statement
}

// policyFor returns two rules for each router, one for each announced family.
func policyFor(peers []Peer, hops map[netip.Addr]nextHops) policy {
	var p policy
	for _, peer := range peers {
		name := peer.Address.String()
		p.sets = append(p.sets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: name,
			List: []string{netip.PrefixFrom(peer.Address, peer.Address.BitLen()).String()}})
		for _, f := range []struct {
			told bool
			afi  api.Family_Afi
			hop  netip.Addr
		}{{peer.IPv4, api.Family_AFI_IP, hops[peer.Address].four}, {peer.IPv6, api.Family_AFI_IP6, hops[peer.Address].six}} {
			if !f.told || !f.hop.IsValid() {
				continue
			}
			p.rules = append(p.rules, &api.Statement{Name: fmt.Sprintf("%s/%s", name, f.afi),
				Conditions: &api.Conditions{
					NeighborSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name},
					AfiSafiIn:   []*api.Family{{Afi: f.afi, Safi: api.Family_SAFI_UNICAST}},
				},
				Actions: peer.actions(f.hop)})
		}
	}
	return p
}

func (p Peer) actions(hop netip.Addr) *api.Actions {
	a := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT, Nexthop: &api.NexthopAction{Address: hop.String()}}
	var plain, large []string
	for _, c := range p.Communities {
		if strings.Count(c, ":") == 2 {
			large = append(large, c)
		} else {
			plain = append(plain, c)
		}
	}
	if len(plain) > 0 {
		a.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: plain}
	}
	if len(large) > 0 {
		a.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: large}
	}
	if p.LocalPreference != nil {
		a.LocalPref = &api.LocalPrefAction{Value: *p.LocalPreference}
	}
	return a
}

// apply replaces the policy in one step, and deletes the former one. Each policy has a name of its own.
func (s *Speaker) apply(ctx context.Context, p policy) error {
	for _, set := range p.sets {
		if err := s.server.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: set, Replace: true}); err != nil {
			return fmt.Errorf("define the router %s: %w", set.Name, err)
		}
	}
	former := s.policyName
	s.policies++
	next := &api.Policy{Name: fmt.Sprintf("out-%d", s.policies)}
	for _, rule := range p.rules {
		rule.Name = fmt.Sprintf("%s-%d", rule.Name, s.policies)
		next.Statements = append(next.Statements, rule)
	}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: next}); err != nil {
		return fmt.Errorf("set the export policy: %w", err)
	}
	if err := s.assign(ctx, api.PolicyDirection_POLICY_DIRECTION_EXPORT, next.Name); err != nil {
		return fmt.Errorf("set the export policy: %w", err)
	}
	s.policyName = next.Name
	if former == "" {
		return nil
	}
	return s.server.DeletePolicy(ctx, &api.DeletePolicyRequest{Policy: &api.Policy{Name: former}, All: true})
}

// refuse sets an import policy that accepts only the routes of this speaker.
func (s *Speaker) refuse(ctx context.Context) error {
	own := &api.Policy{Name: "in", Statements: []*api.Statement{{Name: "own", Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}}}}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return s.assign(ctx, api.PolicyDirection_POLICY_DIRECTION_IMPORT, own.Name)
}

// assign makes one policy decide in a direction. Routes that match no rule are rejected.
func (s *Speaker) assign(ctx context.Context, direction api.PolicyDirection, policy string) error {
	return s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Direction: direction, Policies: []*api.Policy{{Name: policy}}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT}})
}
