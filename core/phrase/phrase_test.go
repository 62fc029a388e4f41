package phrase

import "testing"

func TestFewNamesTheFirstItemsAndCountsTheOthers(t *testing.T) {
	for want, items := range map[string][]string{"": nil, "a": {"a"}, "a, b, c, d, e": {"a", "b", "c", "d", "e"}, "a, b, c, d, e, and 2 more": {"a", "b", "c", "d", "e", "f", "g"}} {
		if got := Few(items, ", "); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
