// Package uplink follows an uplink, an interface of a gateway on the clients' segment: its state, its frames for this host, and its multicast groups.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State is the state of an interface. The zero State means that the interface does not exist.
type State struct {
	// Index is the number of the interface. A later interface of the same name has another number.
	Index int
	MAC   net.HardwareAddr
	// MTU is in bytes.
	MTU int
	// Running: it is up and has a carrier (netdevice(7)).
	Running bool
}

// Equal reports whether the states are equal.
func (s State) Equal(o State) bool {
	return s.Index == o.Index && slices.Equal(s.MAC, o.MAC) && s.MTU == o.MTU && s.Running == o.Running
}

// ReadState returns the present state of an interface. It uses ioctl(2), which, unlike netlink, does not wait for changes of other interfaces. An interface that does
// not exist is no error.
func ReadState(name string) (State, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // any kind of socket works
	if err != nil {
		return State{}, fmt.Errorf("state of interface %s: %w", name, err)
	}
	defer unix.Close(fd)
	s, err := look(fd, name)
	if errors.Is(err, unix.ENODEV) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("state of interface %s: %w", name, err)
	}
	return s, nil
}

func look(fd int, name string) (State, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return State{}, err
	}
	var s State
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return State{}, err
	}
	s.Index = int(request.Uint32())
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFMTU, request); err != nil {
		return State{}, err
	}
	s.MTU = int(request.Uint32())
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return State{}, err
	}
	const both = unix.IFF_UP | unix.IFF_RUNNING
	s.Running = request.Uint16()&both == both
	s.MAC, err = macOf(fd, name)
	return s, err
}

// hardwareAddress is struct ifreq as SIOCGIFHWADDR fills it. unix.Ifreq gives access to only four bytes of the address.
type hardwareAddress struct {
	name    [unix.IFNAMSIZ]byte
	family  uint16
	address [22]byte
}

func macOf(fd int, name string) (net.HardwareAddr, error) {
	var request hardwareAddress
	copy(request.name[:len(request.name)-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil, errno
	}
	if request.family != unix.ARPHRD_ETHER {
		return nil, nil
	}
	return slices.Clone(request.address[:6]), nil
}

const (
	// pollInterval is the interval at which the state is read without an event, since events may be lost.
	pollInterval = 10 * time.Second
	// retryDelay is the pause before a new subscription after a failure.
	retryDelay = time.Second
	// eventBuffer is the size of the buffer for events of the kernel, in bytes. Sysctl net.core.rmem_max bounds it.
	eventBuffer = 1 << 21
)

// errEventsLost: the kernel sent more events than the buffer holds.
var errEventsLost = errors.New("events of interfaces were lost")

// Follow calls changed with the state of an interface, at once and after each change, until ctx ends. If another interface of the same name replaces the
// interface, the next State has another Index, or the zero State comes in between. failed is called with the reason while changes are noticed up to ten
// seconds late.
func Follow(ctx context.Context, name string, changed func(State), failed func(error)) {
	f := follower{name: name, changed: changed}
	for {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		failed(fmt.Errorf("follow interface %s: %w", name, err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryDelay):
		}
	}
}

type follower struct {
	name    string
	changed func(State)
	// last is the last state that was passed to changed; known: there was one.
	last  State
	known bool
}

func (f *follower) report(s State) {
	if f.known && s.Equal(f.last) {
		return
	}
	f.last, f.known = s, true
	f.changed(s)
}

// follow follows the interface until it fails or ctx ends. It subscribes before it reads the state, so that it misses no change in between.
func (f *follower) follow(ctx context.Context) error {
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	options := netlink.LinkSubscribeOptions{ReceiveBufferSize: eventBuffer}
	if err := netlink.LinkSubscribeWithOptions(updates, done, options); err != nil {
		close(done)
		return err
	}
	defer func() {
		close(done)
		for range updates { // the goroutine of the library may wait to send before it closes the channel
			continue
		}
	}()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		s, err := ReadState(f.name)
		if err != nil {
			return err
		}
		f.report(s)
		if err := f.await(ctx, updates, ticker.C); err != nil {
			return err
		}
	}
}

// await returns when the state has to be read again. If the interface is deleted, it reports that at once: a new interface may already have the same name and
// number.
func (f *follower) await(ctx context.Context, updates <-chan netlink.LinkUpdate, tick <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			return nil
		case u, open := <-updates:
			if !open {
				return errEventsLost
			}
			ours := f.last.Index != 0 && int(u.Index) == f.last.Index
			// A bridge sends the same message, with another family, when a port leaves it.
			if ours && u.Header.Type == unix.RTM_DELLINK && u.Family == unix.AF_UNSPEC {
				f.report(State{})
				return nil
			}
			if ours || u.Attrs().Name == f.name {
				return nil
			}
		}
	}
}
