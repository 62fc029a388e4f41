package envoy

import (
	"fmt"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"kubelb.k8c.io/backends/nftables/elements"
	"kubelb.k8c.io/backends/nftables/rules"
	"kubelb.k8c.io/core/model"
)

// list is a list of source ranges in a table.
type list struct {
	table *guardTable
	name  string
}

// listChanges collects the lists that more or fewer frontends use.
type listChanges struct {
	users   map[list]int
	content map[list]elements.Ranges
}

func newListChanges() listChanges {
	return listChanges{map[list]int{}, map[list]elements.Ranges{}}
}

// ranges is the frontend's list, if its source counts.
func (f guarded) ranges() elements.Ranges {
	if !f.Restricted {
		return elements.Ranges{}
	}
	return elements.RangesOf(f.SourceRanges)
}

// replace collects what leads a frontend from one list to another.
func (l listChanges) replace(t *guardTable, e setChanges, k model.FrontendKey, before, after guarded) {
	was, is := before.ranges(), after.ranges()
	if was.Name == is.Name {
		return
	}
	key := elements.Frontend(k)
	if was.Name != "" {
		e.remove[t.lists] = append(e.remove[t.lists], nft.SetElement{Key: key})
		l.users[list{t, was.Name}]--
	}
	if is.Name != "" {
		e.add[t.lists] = append(e.add[t.lists], nft.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: is.Name}})
		l.users[list{t, is.Name}]++
		l.content[list{t, is.Name}] = is
	}
}

// begin has the transaction make the lists that nobody used so far.
func (l listChanges) begin(c *nft.Conn) error {
	for at, change := range l.users {
		t := at.table
		if t.listUsers[at.name] > 0 || change <= 0 {
			continue
		}
		content := l.content[at]
		allowed := append(t.senderIn(content.Set(t.table, t.address)), rules.Return())
		if err := content.Add(c, t.table, t.address, allowed, []expr.Any{rules.Drop()}); err != nil {
			return fmt.Errorf("set %s: %w", at.name, err)
		}
	}
	return nil
}

// end has the transaction remove the lists that nobody uses any more.
func (l listChanges) end(c *nft.Conn) {
	for at, change := range l.users {
		if was, is := count(at.table.listUsers, at.name, change); was && !is {
			elements.DeleteRanges(c, at.table.table, at.name)
		}
	}
}
