// Package e2e tests the whole path on real clusters: kubectl on one end, curl on the other.
package e2e
