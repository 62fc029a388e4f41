package nftables

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/core/model"
)

// kernelSets are sets and maps of a table as in the kernel: each key once, and verdicts as the kernel returns them.
type kernelSets map[string]map[string]nft.SetElement

// adoptedSets returns the sets that adopt reads, in the order in which the fuzzer numbers them.
func adoptedSets(f family) []string {
	names := []string{mapRegistry, mapEndpoints, mapNodes, mapPools, mapPorts, mapAffinity, mapRanges, setTransparent, mapDirect, mapNextGateway, mapRedirects, egressVIPMap(f)}
	for _, k := range limitKinds() {
		names = append(names, k.verdicts)
	}
	return names
}

func (k kernelSets) read(set string) ([]nft.SetElement, error) {
	var out []nft.SetElement
	for _, key := range slices.Sorted(maps.Keys(k[set])) {
		out = append(out, k[set][key])
	}
	return out, nil
}

// put adds or replaces an element.
func (k kernelSets) put(set string, e nft.SetElement) {
	if k[set] == nil {
		k[set] = map[string]nft.SetElement{}
	}
	k[set][string(e.Key)] = e
}

// carry executes a plan on the sets, as the kernel does: to remove a missing element or to add an existing one is an error.
func (k kernelSets) carry(t testing.TB, f family, p *plan, err error) {
	t.Helper()
	require.NoError(t, err)
	for _, e := range p.edits {
		if !slices.Contains(adoptedSets(f), e.set) {
			continue
		}
		_, there := k[e.set][string(e.element.Key)]
		require.Equal(t, e.remove, there, "%s of %s: %x", map[bool]string{true: "removal", false: "addition"}[e.remove], e.set, e.element.Key)
		if e.remove {
			delete(k[e.set], string(e.element.Key))
			continue
		}
		element := e.element
		if v := element.VerdictData; v != nil {
			text, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_VERDICT_CHAIN, Data: append([]byte(v.Chain), 0)}})
			require.NoError(t, err)
			element.Val, element.VerdictData = text, nil
		}
		k.put(e.set, element)
	}
	p.commit()
}

// text encodes the elements of all sets for the fuzzer.
func (k kernelSets) text(f family) (out []byte) {
	for i, set := range adoptedSets(f) {
		all, _ := k.read(set)
		for _, e := range all {
			out = append(out, elementText(i, e)...)
		}
	}
	return out
}

func elementText(set int, e nft.SetElement) []byte {
	out := []byte{byte(set)}
	for _, part := range [][]byte{e.Key, e.Val, []byte(e.Comment)} {
		out = append(append(out, byte(len(part))), part...)
	}
	return out
}

// setsFrom decodes such a text.
func setsFrom(f family, text []byte) kernelSets {
	k, names := kernelSets{}, adoptedSets(f)
	part := func() (out []byte) {
		if len(text) == 0 {
			return nil
		}
		n := min(int(text[0]), len(text)-1)
		out, text = text[1:1+n], text[1+n:]
		return out
	}
	for len(text) > 0 {
		set := names[int(text[0])%len(names)]
		text = text[1:]
		k.put(set, nft.SetElement{Key: part(), Val: part(), Comment: string(part())})
	}
	return k
}

// served returns records with each feature.
func served(f family) ([]model.Pool, []model.Frontend) {
	address := func(four, six string) netip.Addr {
		if f.v4 {
			return netip.MustParseAddr(four)
		}
		return netip.MustParseAddr(six)
	}
	one, two, vip := address("198.51.100.11", "2001:db8:1::11"), address("198.51.100.12", "2001:db8:1::12"), address("203.0.113.1", "2001:db8:f::1")
	pools := []model.Pool{{ID: "a/p", Tenant: "a", Endpoints: []model.Endpoint{{ID: "n1", Address: one, Weight: 1}, {ID: "n2", Address: two, Weight: 1, State: model.Unhealthy}}}, {ID: "a/none", Tenant: "a"}}
	var frontends []model.Frontend
	for i, change := range []func(*model.Frontend){
		func(*model.Frontend) {},
		func(fe *model.Frontend) { fe.Pool = "a/none" },
		func(fe *model.Frontend) { fe.AffinityTimeout = time.Minute },
		func(fe *model.Frontend) {
			fe.Restricted, fe.SourceRanges = true, []netip.Prefix{netip.PrefixFrom(one, one.BitLen()-8).Masked()}
		},
		func(fe *model.Frontend) { fe.Forwarding = model.Transparent },
		func(fe *model.Frontend) { fe.Forwarding = model.Direct },
		func(fe *model.Frontend) { fe.Redirect = model.Redirect{Next: vip.Next(), Limit: 3} },
		func(fe *model.Frontend) { fe.MaxConnections, fe.MaxNewPerSecond = 7, 8 },
	} {
		fe := model.Frontend{FrontendKey: model.FrontendKey{VIP: vip, Protocol: model.TCP, Port: uint16(80 + i)}, Owner: model.ObjectName{Namespace: "tenant-a", Name: "web"}, Tenant: "a", Pool: "a/p", TargetPort: 30080}
		change(&fe)
		frontends = append(frontends, fe)
	}
	return pools, frontends
}

func (k kernelSets) serve(t testing.TB, s *state, pools []model.Pool, frontends []model.Frontend) {
	t.Helper()
	for _, pool := range pools {
		p, err := s.planPool(pool)
		k.carry(t, s.family, p, err)
	}
	for _, f := range frontends {
		p, err := s.planFrontend(f)
		k.carry(t, s.family, p, err)
	}
}

// strange returns elements that no version writes.
func strange(f family) (all [][]byte) {
	add := func(set string, key, value []byte, comment string) {
		all = append(all, elementText(slices.Index(adoptedSets(f), set), nft.SetElement{Key: key, Val: value, Comment: comment}))
	}
	_, frontends := served(f)
	key := func(p *plan) []byte { return p.edits[0].element.Key }(newState(f).planAnything(frontends[0]))
	const digest = "0123456789abcdef01234567 "
	add(mapRegistry, nil, mark(509), digest+"a/q") // `*` of nft, which has no key
	add(mapRegistry, mark(9), mark(509), "mine")
	add(mapRegistry, mark(9), mark(1<<32-1), digest+"a/q")
	add(mapRegistry, mark(9), mark(509), digest+"a/p")
	add(mapRegistry, mark(9), mark(509), digest+"a/\xff")
	add(mapRegistry, mark(1<<32-1), mark(509), digest+"a/q")
	add(mapRegistry, mark(9), mark(509), "\xff\xff a/q")
	add(mapEndpoints, mark(handleBit+9), []byte{1}, "1 n9")
	add(mapEndpoints, mark(9), []byte{198, 51, 100, 9}, "1 n9")
	add(mapEndpoints, mark(handleBit+9), []byte{198, 51, 100, 9}, "1 n1")
	add(mapEndpoints, mark(handleBit+9), []byte{198, 51, 100, 9}, "99 n1")
	add(mapPools, key, mark(77), "no digest")
	add(mapPools, key[:3], mark(1), digest)
	add(mapPorts, key, nil, "")
	add(mapAffinity, key, mark(1<<32-1), "")
	add(mapNextGateway, key, []byte{1, 2, 3}, "")
	add(mapRedirects, key, []byte{8, 0, 1, 0, 'a', 's', 'k', 0}, "")
	add(mapDirect, key, mark(1), "")
	add(setTransparent, nil, nil, "")
	add(egressVIPMap(f), mark(1<<32-1), nil, frontends[5].FrontendKey.String())
	return all
}

// planAnything returns a plan whose first edit has the frontend's key.
func (s *state) planAnything(f model.Frontend) *plan {
	s.pools[f.Pool] = &poolState{mark: 1}
	p, err := s.planFrontend(f)
	if err != nil {
		panic(err)
	}
	return p
}

// Tables with any content are either unreadable, and then replaced, or adopted. Adopted tables can be changed without an error of the kernel, and nothing
// is left when all records are deleted.
func FuzzTables(f *testing.F) {
	for i, of := range families {
		whole, s := kernelSets{}, newState(of)
		pools, frontends := served(of)
		whole.serve(f, s, pools, frontends)
		f.Add(i == 0, whole.text(of))
		f.Add(i == 0, []byte{})
		require.NoError(f, newState(of).adopt(setsFrom(of, whole.text(of)).read), "whole tables are adopted")
		for _, one := range strange(of) {
			f.Add(i == 0, append(whole.text(of), one...))
		}
	}
	f.Fuzz(func(t *testing.T, first bool, text []byte) {
		of := families[1]
		if first {
			of = families[0]
		}
		k, s := setsFrom(of, text), newState(of)
		if err := s.adopt(k.read); err != nil {
			require.ErrorIs(t, err, errUnreadable)
			return
		}
		digests := model.NewDigests()
		s.digests(digests)
		for id, digest := range digests.Pools {
			require.True(t, id != "" && utf8.ValidString(string(id)+string(digest)))
		}
		for key, digest := range digests.Frontends {
			require.True(t, key.VIP.Is4() == of.v4 && utf8.ValidString(string(digest)))
			require.Contains(t, []model.Protocol{model.TCP, model.UDP}, key.Protocol)
		}
		pools, frontends := served(of)
		k.serve(t, s, pools, frontends)
		next := newState(of)
		require.NoError(t, next.adopt(k.read))
		for _, f := range frontends {
			require.Equal(t, f.Digest(), next.frontends[f.FrontendKey].digest)
			require.Equal(t, s.frontends[f.FrontendKey].number, next.frontends[f.FrontendKey].number)
			require.Equal(t, s.frontends[f.FrontendKey].redirect, next.frontends[f.FrontendKey].redirect)
		}
		for key := range s.frontends {
			k.carry(t, of, s.planDeleteFrontend(key), nil)
		}
		for id := range s.pools {
			k.carry(t, of, s.planDeletePool(id), nil)
		}
		for _, set := range adoptedSets(of) {
			require.Empty(t, k[set], set)
		}
	})
}

func TestAnImpossibleNumberOfRowsIsUnreadable(t *testing.T) {
	s := newState(families[0])
	err := s.adoptPool(nft.SetElement{Key: mark(1), Val: binary.NativeEndian.AppendUint32(nil, 1<<31-1), Comment: "0123456789abcdef01234567 a/p"})
	require.ErrorContains(t, err, "pool a/p: no table has 2147483647 rows", "each would be removed, one by one")
}
