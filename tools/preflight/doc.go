// Package preflight tests the command kubelb-manager preflight in network namespaces that lack something that a gateway needs.
package preflight
