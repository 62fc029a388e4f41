// Package plugin carries the contract of package dataplane between processes: a plugin calls Serve, the manager calls
// Load. It uses hashicorp/go-plugin, with gRPC and mutual TLS on a private Unix socket.
//
// The plugin inherits no environment: it has no PATH, so a program that it starts needs an absolute path, or is in the directory
// of os.Executable. Its working directory is /. What it writes to os.Stderr and, while it serves, to os.Stdout is in the log of
// the process that started it. It exits when that process does. docs/plugin.md has the rest, and commands to begin with.
package plugin
