package nftables

import (
	"cmp"
	"fmt"
)

// The options of --backend-option.
const (
	// optionTable names the tables, for several gateways in one network namespace.
	optionTable = "table"
	// optionFlowtable turns the fast path on or off.
	optionFlowtable = "flowtable"
)

// Values of optionFlowtable.
const (
	flowtableAuto = "auto"
	flowtableOff  = "off"
)

// options are the settings of the dataplane.
type options struct {
	// table is the name of the tables.
	table string
	// flowtable is flowtableAuto or flowtableOff.
	flowtable string
}

// parseOptions parses the --backend-option pairs.
func parseOptions(given map[string]string) (options, error) {
	o := options{cmp.Or(given[optionTable], "kubelb"), cmp.Or(given[optionFlowtable], flowtableAuto)}
	for option := range given {
		if option != optionTable && option != optionFlowtable {
			return o, fmt.Errorf("backend option %q: the nftables backend knows only %q and %q", option, optionTable, optionFlowtable)
		}
	}
	if o.flowtable != flowtableAuto && o.flowtable != flowtableOff {
		return o, fmt.Errorf("backend option %s=%q: it is %s or %s", optionFlowtable, o.flowtable, flowtableAuto, flowtableOff)
	}
	return o, nil
}
