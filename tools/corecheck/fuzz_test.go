package corecheck

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"kubelb.k8c.io/core/explain"
)

// Any document has an answer, always the same, and nothing that it serves breaks a rule.
func FuzzExplain(f *testing.F) {
	for _, c := range corpus(f) {
		f.Add(c.document(f))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		answered := explain.JSON(document)
		require.Equal(t, answered, explain.JSON(document))
		require.True(t, json.Valid(answered))
		var in explain.Input
		if json.Unmarshal(document, &in) != nil {
			return
		}
		if out, err := explain.Explain(in); err == nil {
			require.Empty(t, violations(in, out))
		}
	})
}

// The properties of the translation, with inputs that the fuzzer makes through the generators.
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

// addRandom gives the fuzzer something that is long enough for the generators.
func addRandom(f *testing.F) {
	for seed := range 20 {
		data := make([]byte, 1000*(seed+1))
		_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
		f.Add(data)
	}
}
