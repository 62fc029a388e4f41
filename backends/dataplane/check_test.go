package dataplane

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestACheckSaysInOneLineWhatIsMissingAndHowToFixIt(t *testing.T) {
	c := Check{Group: GroupModules, Subject: "module nft_ct", State: CheckMissing, Found: "not loaded", Command: "modprobe nft_ct"}
	require.Equal(t, "module nft_ct: not loaded; run: modprobe nft_ct", c.String())
	c.Costs = "limits"
	require.Equal(t, "module nft_ct: not loaded; does not work: limits; run: modprobe nft_ct", c.String())
	c.Advice = "on the host"
	require.Contains(t, c.String(), "; run: modprobe nft_ct     # on the host", "for a shell the advice is a comment")
	c.State, c.Found = CheckOK, "loaded"
	require.Equal(t, "module nft_ct: loaded", c.String(), "there is nothing to fix")
}

func TestOnlyMissingRequirementsAreAnError(t *testing.T) {
	limited := Check{Subject: "limited", State: CheckMissing, Found: "gone", Costs: "something"}
	unknown := Check{Subject: "unknown", State: CheckUnknown}
	require.NoError(t, MissingError([]Check{limited, unknown, {Subject: "fine", State: CheckOK}}))
	required := Check{Subject: "required", State: CheckMissing, Found: "gone", Command: "get it"}
	require.EqualError(t, MissingError([]Check{limited, required}), "this host lacks what the dataplane needs:\nrequired: gone; run: get it")
	require.Equal(t, []Check{required, limited}, Lacking([]Check{limited, unknown, required}))
}
