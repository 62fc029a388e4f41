package e2e

import (
	"context"
	"testing"
)

// contextAfter is for clean-up, when the test's own context has ended.
func contextAfter(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }
