// Package plugin carries the contract of package dataplane between processes: a backend calls Serve, the manager calls
// Load. It rides on hashicorp/go-plugin over gRPC with mutual TLS on a private Unix socket; the backend inherits no
// environment and exits when the process that started it does.
package plugin
