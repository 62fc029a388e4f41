package controller

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// conflictRetry is the pause after a conflict with another write. By then the cache has that write.
const conflictRetry = 200 * time.Millisecond

// retryConflicts returns the result of a reconciler, with a retry instead of an error for a conflict with another write. So a tenant that changes an
// object all the time does not fill the log with errors.
func retryConflicts(ctx context.Context, result reconcile.Result, err error) (reconcile.Result, error) {
	if !isConflict(err) {
		return result, err
	}
	log.FromContext(ctx).V(1).Info("another program has changed the object; trying again", "cause", err.Error())
	return reconcile.Result{RequeueAfter: conflictRetry}, nil
}

// isConflict reports whether the error is a conflict, or consists only of conflicts.
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
