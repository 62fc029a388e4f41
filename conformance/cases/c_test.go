package cases

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/conformance/lab"
)

// quick is the setting of runs without a backend.
var quick = Setting{V4: true, Patience: lab.Patience(1)}

func TestFailuresNamePlacesByFile(t *testing.T) {
	c := newC(t.Context(), quick)
	c.Errorf("Error Trace:\t/some/where/conformance/cases/drain.go:17\n\t/opt/go/src/runtime/asm_amd64.s:1771\nat /proc/self/net/tcp: %s", "no")
	require.Equal(t, "Error Trace:\tdrain.go:17\n\tasm_amd64.s:1771\nat /proc/self/net/tcp: no", c.failures[0].Details)
}

func TestAFailureSaysWhatWasExpectedAndWhatWasSeen(t *testing.T) {
	for name, c := range map[string]struct {
		fail           func(*C)
		expected, seen string
	}{
		"values":              {func(c *C) { c.Equal(map[int]int{2: 5}, map[int]int{0: 3, 1: 2}) }, "map[int]int{2:5}", "map[int]int{0:3, 1:2}"},
		"values, with words":  {func(c *C) { c.Equal(1, 2, "with the %s", "successor") }, "1: with the successor", "2"},
		"long texts":          {func(c *C) { c.Equal("a\nb", "a\nc") }, `"a\nb"`, `"a\nc"`},
		"an error":            {func(c *C) { c.NoError(context.DeadlineExceeded, "one of %d flows", 7) }, "no error: one of 7 flows", "context deadline exceeded"},
		"no error":            {func(c *C) { c.Error(nil, "tcp 203.0.113.1:80 is served") }, "an error: tcp 203.0.113.1:80 is served", "none"},
		"a condition":         {func(c *C) { c.True(false, "%d of %d connections", 3, 20) }, "", "3 of 20 connections"},
		"a bare condition":    {func(c *C) { c.False(true) }, "", "it is not so"},
		"a bound":             {func(c *C) { c.Less(12, 10, "flows") }, "less than 10: flows", "12"},
		"another bound":       {func(c *C) { c.GreaterOrEqual(1, 2) }, "greater than or equal to 2", "1"},
		"a positive number":   {func(c *C) { c.Positive(0) }, "a positive number", "0"},
		"zero":                {func(c *C) { c.Zero(3, "connections of the former owner continue") }, "zero: connections of the former owner continue", "3"},
		"an empty list":       {func(c *C) { c.Empty([]dataplane.RecordError{{Message: "no"}}) }, "nothing", "[{ invalid AddrPort/0 no}]"},
		"a list that is not":  {func(c *C) { c.NotEmpty([]int{}) }, "something", "[]"},
		"a length":            {func(c *C) { c.Len([]int{4, 5}, 1) }, "1 items", "2: [4 5]"},
		"a message":           {func(c *C) { c.Errorf("%s is no endpoint", "192.0.2.1") }, "", "192.0.2.1 is no endpoint"},
		"a failure":           {func(c *C) { c.Fail("the endpoint does not leave") }, "", "the endpoint does not leave"},
		"an unknown sentence": {func(c *C) { c.Contains("abc", "d") }, "", `"abc" does not contain "d"`},
	} {
		o := run(t.Context(), quick, limit, func(c2 *C) {
			c2.doing("5 tcp flows")
			c.fail(c2)
		})
		require.Len(t, o.Failures, 1, name)
		f := o.Failures[0]
		if name != "an empty list" {
			require.Equal(t, c.expected, f.Expected, name)
			require.Equal(t, c.seen, f.Seen, name)
		} else {
			require.Equal(t, c.expected, f.Expected)
			require.Contains(t, f.Seen, "no}")
		}
		require.Equal(t, "5 tcp flows", f.During)
		require.NotContains(t, f.Expected+f.Seen, "\n")
	}
}

func TestAFailureNamesTheLineOfTheCase(t *testing.T) {
	require.Equal(t, "drain.go:23", caseLine("c.go:291\nload.go:94\ndrain.go:23\nrun.go:57\nrun.go:160\nasm_amd64.s:1771"))
	require.Empty(t, caseLine("run.go:57"))
	require.Equal(t, "drain.go:23, 5 tcp flows", Failure{At: "drain.go:23", During: "5 tcp flows"}.Where())
}

func TestALongFailureIsCut(t *testing.T) {
	long := make([]byte, 10000)
	for i := range long {
		long[i] = 'x'
	}
	f := failureFrom(string(long))
	require.Less(t, len(f.Seen), 700)
	require.Len(t, f.Details, 10000)
}

func TestNumbersHaveCommas(t *testing.T) {
	for n, text := range map[int]string{0: "0", 999: "999", 1000: "1,000", 412: "412", 1234567: "1,234,567"} {
		require.Equal(t, text, thousands(n))
	}
	require.Equal(t, "1 flow", count(1, "flow"))
	require.Equal(t, "1,000 flows", count(1000, "flow"))
}
