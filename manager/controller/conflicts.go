package controller

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// conflictRetry is when to look again at an object that somebody else has just changed: by then the cache has the change.
const conflictRetry = 200 * time.Millisecond

// unlessConflict returns the result of a reconciler. A conflict with a concurrent write is no error: otherwise a tenant that changes an object all the time
// would have an error logged for each change.
func unlessConflict(ctx context.Context, result reconcile.Result, err error) (reconcile.Result, error) {
	if !isConflict(err) {
		return result, err
	}
	log.FromContext(ctx).V(1).Info("changed meanwhile: it is looked at again", "cause", err.Error())
	return reconcile.Result{RequeueAfter: conflictRetry}, nil
}

// isConflict tells whether the error is a conflict, and nothing else besides.
func isConflict(err error) bool {
	joined, is := err.(interface{ Unwrap() []error })
	if !is {
		return apierrors.IsConflict(err)
	}
	for _, e := range joined.Unwrap() {
		if !isConflict(e) {
			return false
		}
	}
	return true
}
