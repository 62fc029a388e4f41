// Package uplink follows an interface at which a gateway speaks to its neighbours: what it is now, which frames on it are for this host, and to which
// multicast groups this host listens there.
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

// State is what an interface is now. The zero State is that of an interface that is not there.
type State struct {
	// Index is its number. Another interface that has its name later has another number.
	Index int
	MAC   net.HardwareAddr
	// MTU is in bytes.
	MTU int
	// Running: it is up and has a carrier (netdevice(7)).
	Running bool
}

// Equal tells whether nothing has changed.
func (s State) Equal(o State) bool {
	return s.Index == o.Index && slices.Equal(s.MAC, o.MAC) && s.MTU == o.MTU && s.Running == o.Running
}

// Look asks the kernel what an interface is now. It does so by ioctl(2), which does not wait while other interfaces are changed, as a question by
// netlink does. An interface that is not there is no error.
func Look(name string) (State, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // any socket will do
	if err != nil {
		return State{}, fmt.Errorf("look at interface %s: %w", name, err)
	}
	defer unix.Close(fd)
	s, err := look(fd, name)
	if errors.Is(err, unix.ENODEV) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("look at interface %s: %w", name, err)
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

// hardwareAddress is struct ifreq as SIOCGIFHWADDR fills it, which unix.Ifreq shows no more than four bytes of.
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
	// lookEvery is how often an interface is looked at of which nothing is heard: what is heard may be lost.
	lookEvery = 10 * time.Second
	// listenAgain is the pause before the kernel is listened to again after a failure.
	listenAgain = time.Second
	// heardMost is the buffer for what the kernel says, in bytes. The kernel gives as much of it as sysctl net.core.rmem_max allows.
	heardMost = 1 << 21
)

// errUnheard is that the kernel told more than could be kept.
var errUnheard = errors.New("what the kernel says of interfaces was not heard")

// Follow calls changed with what an interface is, at once and each time that it is something else, until ctx ends. Where an interface is replaced by
// another one of its name, the State that follows has another Index, or the zero State comes in between. failed is told why changes are noticed
// late, up to ten seconds, while that is so.
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
		case <-time.After(listenAgain):
		}
	}
}

type follower struct {
	name    string
	changed func(State)
	// last is what changed was told; known is that it was told anything.
	last  State
	known bool
}

func (f *follower) tell(s State) {
	if f.known && s.Equal(f.last) {
		return
	}
	f.last, f.known = s, true
	f.changed(s)
}

// follow follows until it fails or ctx ends. It listens before it looks, so that nothing is missed in between.
func (f *follower) follow(ctx context.Context) error {
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	options := netlink.LinkSubscribeOptions{ReceiveBufferSize: heardMost}
	if err := netlink.LinkSubscribeWithOptions(updates, done, options); err != nil {
		close(done)
		return err
	}
	defer func() {
		close(done)
		for range updates { // the library's goroutine closes it at its end, and may wait to send before
			continue
		}
	}()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		s, err := Look(f.name)
		if err != nil {
			return err
		}
		f.tell(s)
		if err := f.await(ctx, updates, ticker.C); err != nil {
			return err
		}
	}
}

// await returns when it is time to look again. That an interface goes is told by itself: another one may have its name by now, and its number.
func (f *follower) await(ctx context.Context, updates <-chan netlink.LinkUpdate, tick <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			return nil
		case u, heard := <-updates:
			if !heard {
				return errUnheard
			}
			ours := f.last.Index != 0 && int(u.Index) == f.last.Index
			// A bridge says of its ports in the same way that they leave it.
			if ours && u.Header.Type == unix.RTM_DELLINK && u.Family == unix.AF_UNSPEC {
				f.tell(State{})
				return nil
			}
			if ours || u.Attrs().Name == f.name {
				return nil
			}
		}
	}
}
