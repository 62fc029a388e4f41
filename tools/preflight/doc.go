// Package preflight tests the command kubelb-manager preflight on hosts of network namespaces that lack something.
package preflight
