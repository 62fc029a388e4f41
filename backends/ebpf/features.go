package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The netlink family netdev (include/uapi/linux/netdev.h, Linux 6.3).
const (
	netdevFamily      = "netdev"
	netdevDeviceGet   = 1
	netdevIndex       = 1
	netdevXDPFeatures = 3

	// xdpAcceptsFrames is NETDEV_XDP_ACT_NDO_XMIT: the interface sends frames that XDP programs of other interfaces redirect to it.
	xdpAcceptsFrames = 4
)

// errNoXDPFeatures is the error of kernels without the family netdev.
var errNoXDPFeatures = errors.New("this kernel does not tell the XDP features of drivers (Linux 6.3)")

// genericHeader is struct genlmsghdr: command, version, and two zero bytes.
type genericHeader [nl.SizeofGenlmsg]byte

// Len returns the length of the header.
func (genericHeader) Len() int { return nl.SizeofGenlmsg }

// Serialize returns the header's bytes.
func (h genericHeader) Serialize() []byte { return h[:] }

// xdpFeatures returns the XDP features that the interface's driver supports now.
func xdpFeatures(index int) (uint64, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, errNoXDPFeatures
	}
	if err != nil {
		return 0, fmt.Errorf("netlink family %s: %w", netdevFamily, err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	request.AddData(genericHeader{netdevDeviceGet, 1})
	request.AddData(nl.NewRtAttr(netdevIndex, nl.Uint32Attr(uint32(index))))
	messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("request XDP features: %w", err)
	}
	for _, m := range messages {
		attributes, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("parse XDP features: %w", err)
		}
		for _, a := range attributes {
			if a.Attr.Type == netdevXDPFeatures {
				return binary.NativeEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, nil
}
