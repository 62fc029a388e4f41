package controller

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// pageSize is how many objects one answer of the API server has. An object has up to 1.5 MB there, with fields that no cache keeps: an answer has
	// 30 MB at most, which is decoded besides.
	pageSize = 20
	// mostReadings is how often a list is begun before that is left to a later attempt. The API server ends a list that takes it longer than it keeps
	// versions, which is five minutes.
	mostReadings = 3
)

// eachPage reads a kind from the API server itself. It gives the pages of one version of the list to do, each in a list of its own from anew. If the API
// server does not have that version any more, it begins again, and calls begin before that as before the first page. A limit among the options counts instead of
// pageSize.
func eachPage[L client.ObjectList](ctx context.Context, reader client.Reader, anew func() L, begin func(), do func(L) error, options ...client.ListOption) error {
	var err error
	for range mostReadings {
		begin()
		if err = pages(ctx, reader, anew, do, options); !apierrors.IsResourceExpired(err) {
			return err
		}
	}
	return err
}

func pages[L client.ObjectList](ctx context.Context, reader client.Reader, anew func() L, do func(L) error, options []client.ListOption) error {
	for next := ""; ; {
		page := anew()
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
