// Package elements encodes frontends and their source ranges as elements of nftables sets, and connects to nftables. It is for
// every dataplane with frontends in sets.
package elements

import (
	"encoding/binary"
	"errors"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/core/model"
)

// PerMessage is the most elements of one message: a netlink attribute has at most 64 KiB.
const PerMessage = 400

// socketBuffer has room for a transaction of several thousand frontends.
const socketBuffer = 64 << 20

// Connect returns a connection. It collects messages, and Flush sends them as one transaction.
func Connect() (*nft.Conn, error) {
	force := func(option int) nft.SockOption {
		return func(c *netlink.Conn) error {
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			var failed error
			err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, socketBuffer) })
			return errors.Join(err, failed)
		}
	}
	return nft.New(nft.WithSockOptions(force(unix.SO_SNDBUFFORCE), force(unix.SO_RCVBUFFORCE)))
}

// Frontend encodes a key: address . protocol . port, each padded to four bytes.
func Frontend(k model.FrontendKey) []byte {
	b := append(k.VIP.AsSlice(), byte(k.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, k.Port), 0, 0)
}
