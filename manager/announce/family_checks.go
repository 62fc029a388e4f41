package announce

import (
	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/ipam"
	"kubelb.k8c.io/manager/uplink"
)

// FamilyChecks returns preflight checks of the families that an interface carries. It returns none for an interface that does not exist or is not
// running: another check reports that.
func FamilyChecks(name string) (checks []dataplane.Check) {
	is, err := uplink.ReadState(name)
	if err == nil && (is.Index == 0 || !is.Running) {
		return nil
	}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		var l familyProblem
		if err == nil {
			l, err = familyProblemOf(name, is, f)
		}
		checks = append(checks, familyCheck(name, f, l, err))
	}
	return checks
}

func familyCheck(name string, f ipam.Family, l familyProblem, err error) dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupInterfaces, Subject: f.String() + " at interface " + name, State: dataplane.CheckOK, Found: "the interface carries it",
		Costs: f.String() + " addresses, unless another interface carries " + f.String()}
	switch {
	case err != nil:
		c.State, c.Found = dataplane.CheckUnknown, err.Error()
	case l != familyProblem{}:
		c.State, c.Found, c.Command, c.Advice = dataplane.CheckMissing, l.found, l.command, l.advice
	}
	return c
}
