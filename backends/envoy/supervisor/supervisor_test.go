package supervisor

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAnEnvoyThatStartsIsNotStartedAgain(t *testing.T) {
	b := newBench(t)
	b.request(b.wanted(serves))
	b.run()
	b.eventually("launch 1 serves", func() bool { _, live := b.Dir.servingEpoch(); return live })
	next := b.request(b.wanted(waits))
	b.replaceNow()
	b.replaceNow()
	starting := b.process(2)
	require.NoError(t, os.WriteFile(string(b.Dir)+"/may-serve", nil, 0o600))
	b.serving(2, 1, next)
	require.True(t, runs(starting))
}

func TestARequestThatIsTakenBackReplacesNothing(t *testing.T) {
	b := newBench(t)
	former := b.request(b.wanted(serves))
	b.run()
	b.serving(1, 0, former)
	b.request(b.wanted(waits))
	b.replaceNow()
	starting := b.process(2)
	b.request(b.wanted(serves))
	b.replaceNow()
	b.eventually("the one that nobody wants any more ends", func() bool { return !runs(starting) })
	require.Equal(t, former, b.now().Identity)
	require.True(t, runs(b.process(1)))
}
