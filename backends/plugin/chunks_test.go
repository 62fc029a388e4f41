package plugin

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/core/model"
)

// chunksOf returns the chunks of records with these numbers of units.
func chunksOf(t *testing.T, units ...int) (chunks [][]int) {
	t.Helper()
	same := func(n int) int { return n }
	require.NoError(t, sendChunks(units, same, same, func(c []int) error {
		chunks = append(chunks, c)
		return nil
	}))
	return chunks
}

func TestAChunkHasAsManyRecordsAsHaveRoom(t *testing.T) {
	const half = chunkUnits / 2
	for what, c := range map[string]struct {
		units []int
		want  [][]int
	}{
		"nothing is sent for no records": {nil, nil},
		"they have room":                 {[]int{half, half}, [][]int{{half, half}}},
		"one unit too many":              {[]int{half, half + 1}, [][]int{{half}, {half + 1}}},
		"a record is never split":        {[]int{1, 3 * chunkUnits, 1}, [][]int{{1}, {3 * chunkUnits}, {1}}},
		"the next chunk counts anew":     {[]int{half, half, half, half, 1}, [][]int{{half, half}, {half, half}, {1}}},
	} {
		require.Equal(t, c.want, chunksOf(t, c.units...), what)
	}
}

func TestAfterAFailedChunkNoOtherIsSent(t *testing.T) {
	sent := 0
	broken := errors.New("broken pipe")
	same := func(n int) int { return n }
	err := sendChunks([]int{chunkUnits, chunkUnits, chunkUnits}, same, same, func([]int) error {
		sent++
		return broken
	})
	require.ErrorIs(t, err, broken)
	require.Equal(t, 1, sent)
}

// failing is a dataplane all of whose calls fail.
type failing struct{ dataplane.Fake }

var errDataplane = errors.New("nft: permission denied")

// Describe, Applied and the other calls return the error.
func (f *failing) Describe(context.Context) (dataplane.Description, error) {
	return dataplane.Description{}, errDataplane
}

func (f *failing) Preflight(context.Context, dataplane.Config) ([]dataplane.Check, error) {
	return nil, errDataplane
}

func (f *failing) Applied(context.Context) (dataplane.Applied, error) {
	return dataplane.Applied{}, errDataplane
}

func (f *failing) Apply(context.Context, dataplane.Change) (dataplane.Result, error) {
	return dataplane.Result{}, errDataplane
}

func (f *failing) Render(context.Context, model.Snapshot) (string, error) { return "", errDataplane }

func (f *failing) Stats(context.Context) (dataplane.Stats, error) {
	return dataplane.Stats{}, errDataplane
}

func (f *failing) Close(context.Context, bool) error { return errDataplane }

func TestAnErrorOfTheDataplaneCrossesTheWireAsItIs(t *testing.T) {
	d, _ := overTheWire(t, &failing{})
	for call, err := range map[string]func(context.Context) error{
		"Describe":  func(ctx context.Context) error { _, err := d.Describe(ctx); return err },
		"Preflight": func(ctx context.Context) error { _, err := d.Preflight(ctx, dataplane.Config{}); return err },
		"Applied":   func(ctx context.Context) error { _, err := d.Applied(ctx); return err },
		"Apply":     func(ctx context.Context) error { _, err := d.Apply(ctx, dataplane.Change{}); return err },
		"Render":    func(ctx context.Context) error { _, err := d.Render(ctx, model.Snapshot{}); return err },
		"Stats":     func(ctx context.Context) error { _, err := d.Stats(ctx); return err },
		"Close":     func(ctx context.Context) error { return d.Close(ctx, true) },
	} {
		require.EqualError(t, err(t.Context()), errDataplane.Error(), call)
	}
}

// slow is a dataplane whose Stats waits for the caller.
type slow struct{ dataplane.Fake }

// Stats implements dataplane.Dataplane.
func (s *slow) Stats(ctx context.Context) (dataplane.Stats, error) {
	<-ctx.Done()
	return dataplane.Stats{}, ctx.Err()
}

func TestAMissedDeadlineIsADeadlineOnTheManagersSide(t *testing.T) {
	d, _ := overTheWire(t, &slow{})
	ctx, cancel := context.WithTimeout(t.Context(), 1)
	defer cancel()
	_, err := d.Stats(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// long renders a text of many characters of three bytes.
type long struct{ dataplane.Fake }

// Render implements dataplane.Dataplane.
func (l *long) Render(context.Context, model.Snapshot) (string, error) { return longText, nil }

var longText = strings.Repeat("€", 1<<20)

func TestALongTextIsSentInPiecesOfWholeCharacters(t *testing.T) {
	d, _ := overTheWire(t, &long{})
	text, err := d.Render(t.Context(), model.Snapshot{})
	require.NoError(t, err)
	require.True(t, longText == text, "%d bytes, not %d", len(text), len(longText))
}
