package e2e

import (
	"context"
	"testing"
)

// cleanUpContext is for clean-up functions, which run after the test's own context has ended.
func cleanUpContext(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }
