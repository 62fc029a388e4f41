package nftables

import (
	"cmp"
	"fmt"
	"os"
	"time"
)

// portRange is a range of ports, both ends in it. Its zero value leaves the choice to the kernel.
type portRange struct{ first, last uint16 }

// settlingTime is how long new tables masquerade only at ports from which this host does not connect by itself. Until then a proxy,
// such as Envoy, may have served the same endpoints, and they remember connections from its ports: Linux for a minute (TIME_WAIT,
// RFC 9293 allows four). One that begins again at such a port may be refused.
const settlingTime = 2 * time.Minute

// usualLocalPorts is what Linux sets ip_local_port_range to.
var usualLocalPorts = portRange{32768, 60999}

// localPorts are those from which this host connects by itself.
func localPorts() (portRange, error) {
	const path = "/proc/sys/net/ipv4/ip_local_port_range" // for IPv6, too
	content, err := os.ReadFile(path)
	if err != nil {
		return portRange{}, fmt.Errorf("ports that this host connects from: %w", err)
	}
	var out portRange
	if _, err := fmt.Sscan(string(content), &out.first, &out.last); err != nil {
		return portRange{}, fmt.Errorf("ports that this host connects from: %s: %w", path, err)
	}
	return out, nil
}

// settlingPorts is the larger part of the source ports that lies below or above the local ones; all of them if nothing does.
func settlingPorts(source, local portRange) portRange {
	first, last := max(int(source.first), 1024), int(cmp.Or(source.last, 65535))
	lastBelow, firstAbove := min(last, int(local.first)-1), max(first, int(local.last)+1)
	below, above := lastBelow-first+1, last-firstAbove+1
	switch {
	case below <= 0 && above <= 0:
		return source
	case below >= above:
		return portRange{uint16(first), uint16(lastBelow)}
	}
	return portRange{uint16(firstAbove), uint16(last)}
}
