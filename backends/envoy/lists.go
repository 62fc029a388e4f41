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
	table *familyTable
	name  string
}

// listChanges collects changes of the numbers of users of lists.
type listChanges struct {
	users   map[list]int
	content map[list]elements.Ranges
}

func newListChanges() listChanges {
	return listChanges{map[list]int{}, map[list]elements.Ranges{}}
}

// ranges returns the frontend's list, empty if it is not restricted.
func (f frontendRules) ranges() elements.Ranges {
	if !f.Restricted {
		return elements.Ranges{}
	}
	return elements.RangesOf(f.SourceRanges)
}

// replace collects the changes when a frontend gets another list.
func (l listChanges) replace(t *familyTable, e setChanges, k model.FrontendKey, before, after frontendRules) {
	former, next := before.ranges(), after.ranges()
	if former.Name == next.Name {
		return
	}
	key := elements.Frontend(k)
	if former.Name != "" {
		e.remove[t.lists] = append(e.remove[t.lists], nft.SetElement{Key: key})
		l.users[list{t, former.Name}]--
	}
	if next.Name != "" {
		e.add[t.lists] = append(e.add[t.lists], nft.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: next.Name}})
		l.users[list{t, next.Name}]++
		l.content[list{t, next.Name}] = next
	}
}

// addNew adds lists with their first user to the transaction.
func (l listChanges) addNew(c *nft.Conn) error {
	for at, change := range l.users {
		t := at.table
		if t.listUsers[at.name] > 0 || change <= 0 {
			continue
		}
		content := l.content[at]
		allowed := append(t.sourceIn(content.Set(t.table, t.address)), rules.Return())
		if err := content.Add(c, t.table, t.address, allowed, []expr.Any{rules.Drop()}); err != nil {
			return fmt.Errorf("set %s: %w", at.name, err)
		}
	}
	return nil
}

// deleteUnused deletes lists without users in the transaction.
func (l listChanges) deleteUnused(c *nft.Conn) {
	for at, change := range l.users {
		if before, after := count(at.table.listUsers, at.name, change); before && !after {
			elements.DeleteRanges(c, at.table.table, at.name)
		}
	}
}
