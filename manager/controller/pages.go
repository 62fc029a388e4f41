package controller

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// pageSize is the number of objects in one answer of the API server. An object has up to 1.5 MB there, with fields that no cache keeps. So an answer
	// has at most 30 MB, which are decoded in addition.
	pageSize = 20
	// maxAttempts is how often the reading of a list begins. The API server keeps old versions for five minutes, and ends a list that takes longer.
	maxAttempts = 3
)

// eachPage reads all objects of a kind from the API server. It calls do for each page of one version of the list, each in a new list from newList. If the
// API server does not have that version any more, it begins again. It calls reset before each beginning. A limit in the options replaces pageSize.
func eachPage[L client.ObjectList](ctx context.Context, reader client.Reader, newList func() L, reset func(), do func(L) error, options ...client.ListOption) error {
	var err error
	for range maxAttempts {
		reset()
		if err = pages(ctx, reader, newList, do, options); !apierrors.IsResourceExpired(err) {
			return err
		}
	}
	return err
}

func pages[L client.ObjectList](ctx context.Context, reader client.Reader, newList func() L, do func(L) error, options []client.ListOption) error {
	for next := ""; ; {
		page := newList()
		if err := reader.List(ctx, page, slices.Concat([]client.ListOption{client.Limit(pageSize)}, options, []client.ListOption{client.Continue(next)})...); err != nil {
			return err
		}
		if err := do(page); err != nil {
			return err
		}
		if next = page.GetContinue(); next == "" {
			return nil
		}
	}
}
