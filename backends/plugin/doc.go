// Package plugin carries the contract of package dataplane between processes: a plugin calls Serve, the manager calls
// Load. It uses hashicorp/go-plugin, with gRPC and mutual TLS on a private Unix socket. The plugin inherits no environment
// and exits when the process that started it does.
package plugin
