package drill

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheLongestLossEndsWithTheLastLostPacket(t *testing.T) {
	at := time.Now()
	after := func(d time.Duration, q request) request {
		q.began = at.Add(d)
		return q
	}
	answered := request{took: 5 * time.Millisecond}
	lost := request{took: 210 * time.Millisecond, repeated: true}
	late := request{took: 2 * time.Second}
	failed := request{took: newTimeout, err: errors.New("no answer")}
	// The gateway still has the last connection from the port.
	challenged := request{took: 10 * time.Millisecond, repeated: true}

	for name, c := range map[string]struct {
		requests []request
		want     time.Duration
	}{
		"no loss":                             {[]request{after(0, answered), after(time.Second, late), after(2*time.Second, challenged)}, 0},
		"losses before the time do not count": {[]request{after(-time.Millisecond, failed), after(-time.Millisecond, lost)}, 0},
		"until the last loss":                 {[]request{after(400*time.Millisecond, lost), after(100*time.Millisecond, failed), after(time.Second, answered)}, 400 * time.Millisecond},
		"until the last failure":              {[]request{after(100*time.Millisecond, lost), after(3*time.Second, failed)}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, (&load{requests: c.requests}).longestLoss(at))
		})
	}
}
