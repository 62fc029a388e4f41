// Package e2e tests all programs together on real clusters, from kubectl to requests of clients.
package e2e
