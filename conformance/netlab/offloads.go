package netlab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offloads with which a packet has no valid checksum, or is larger than a frame of a real network.
const (
	ethtoolSetRXChecksum = 0x15 // ETHTOOL_SRXCSUM
	ethtoolSetTXChecksum = 0x17 // ETHTOOL_STXCSUM
	ethtoolSetTSO        = 0x1f // ETHTOOL_STSO
	ethtoolSetGSO        = 0x24 // ETHTOOL_SGSO
	ethtoolSetGRO        = 0x2c // ETHTOOL_SGRO
)

// ethtoolValue is struct ethtool_value (include/uapi/linux/ethtool.h).
type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq with a pointer as its data.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// DisableOffloads switches the checksum and segmentation offloads of an interface off. With them a veth pair never computes a
// checksum, and tests would not notice a dataplane that writes a wrong one.
func (ns *Namespace) DisableOffloads(name string) error {
	return ns.ethtool(name, 0, ethtoolSetTXChecksum, ethtoolSetRXChecksum, ethtoolSetTSO, ethtoolSetGSO, ethtoolSetGRO)
}

// AcceptXDPFrames makes an end of a veth pair accept frames that XDP programs at the other end send. The kernel drops them unless
// the receiving end has GRO or an XDP program of its own, because only then it has the queue for them.
func (ns *Namespace) AcceptXDPFrames(name string) error { return ns.ethtool(name, 1, ethtoolSetGRO) }

// ethtool sets flags of an interface.
func (ns *Namespace) ethtool(name string, to uint32, commands ...uint32) error {
	return ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, command := range commands {
			value := ethtoolValue{command: command, data: to}
			request := ethtoolRequest{data: unsafe.Pointer(&value)}
			copy(request.name[:unix.IFNAMSIZ-1], name)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return fmt.Errorf("ethtool command %#x on %s: %w", command, name, errno)
			}
		}
		return nil
	})
}
