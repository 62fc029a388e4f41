package corecheck

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"kubelb.k8c.io/core/explain"
)

// Each document has an answer, always the same one, whose output violates no rule.
func FuzzExplain(f *testing.F) {
	for _, c := range corpus(f) {
		f.Add(c.document(f))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		answer := explain.JSON(document)
		require.Equal(t, answer, explain.JSON(document))
		require.True(t, json.Valid(answer))
		var in explain.Input
		if json.Unmarshal(document, &in) != nil {
			return
		}
		if out, err := explain.Explain(in); err == nil {
			require.Empty(t, violations(in, out))
		}
	})
}

// The fuzzer controls the generators of the inputs.
func FuzzTranslation(f *testing.F) {
	addRandom(f)
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		outputIsValid(t)
		orderDoesNotMatter(t)
		twiceChangesNothing(t)
	}))
}

func FuzzHub(f *testing.F) {
	addRandom(f)
	f.Fuzz(rapid.MakeFuzz(incrementalEqualsFull))
}

// addRandom adds seeds that are long enough for the generators.
func addRandom(f *testing.F) {
	for seed := range 20 {
		data := make([]byte, 1000*(seed+1))
		_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
		f.Add(data)
	}
}
