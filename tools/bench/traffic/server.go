package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelb.k8c.io/conformance/netlab"
)

// nodePort is the port of the servers on nodes.
const nodePort = 30080

// server is a server on a node.
type server struct {
	ns       *netlab.Namespace
	listener net.Listener
	packets  []net.PacketConn
	all      sync.WaitGroup
}

func serve(ns *netlab.Namespace) (*server, error) {
	s := &server{ns: ns}
	err := ns.Do(func() (err error) {
		s.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", fmt.Sprintf("0.0.0.0:%d", nodePort))
		return err
	})
	if err != nil {
		return nil, err
	}
	s.all.Go(s.accept)
	return s, nil
}

// answerAt also answers datagrams at an address of the node. A socket for all addresses would answer from the first address.
func (s *server) answerAt(address netip.Addr) error {
	return s.ns.Do(func() error {
		c, err := net.ListenPacket("udp4", netip.AddrPortFrom(address, nodePort).String())
		if err != nil {
			return err
		}
		s.packets = append(s.packets, c)
		s.all.Go(func() { answer(c) })
		return nil
	})
}

// close ends the server, and waits until all connections have ended.
func (s *server) close() error {
	err := s.listener.Close()
	for _, c := range s.packets {
		err = errors.Join(err, c.Close())
	}
	s.all.Wait()
	return err
}

func (s *server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.all.Go(func() { serveConnection(c) })
	}
}

func serveConnection(c net.Conn) {
	defer c.Close()
	buffer := make([]byte, requestSize)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if buffer[0] != asRequest {
			buffer = make([]byte, bulkSize)
			for err == nil {
				_, err = c.Read(buffer)
			}
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func answer(c net.PacketConn) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(buffer[:n], from) // fails if the client is gone
		}
	}
}

// counter counts and drops datagrams at the interfaces of nodes.
type counter struct {
	counted *ebpf.Map
	program *ebpf.Program
	links   []link.Link
}

func newCounter() (_ *counter, err error) {
	c := &counter{}
	if c.counted, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return nil, err
	}
	const data, end = 76, 80 // struct __sk_buff
	const protocol, payload = 14 + 9, 14 + 20 + 8
	const drop, next = 2, -1 // TCX_DROP and TCX_NEXT
	c.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "count", Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R7, asm.R1, end, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R6),
		asm.Add.Imm(asm.R2, payload+1),
		asm.JGT.Reg(asm.R2, asm.R7, "other"),
		asm.LoadMem(asm.R2, asm.R6, protocol, asm.Byte),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_UDP, "other"),
		asm.LoadMem(asm.R2, asm.R6, payload, asm.Byte),
		asm.JNE.Imm(asm.R2, asCounted, "other"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, c.counted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "other"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, drop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, next).WithSymbol("other"),
		asm.Return(),
	}})
	if err != nil {
		return nil, errors.Join(err, c.counted.Close())
	}
	return c, nil
}

// attach attaches the counter to an interface.
func (c *counter) attach(ns *netlab.Namespace, name string) error {
	return ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		attached, err := link.AttachTCX(link.TCXOptions{Interface: l.Attrs().Index, Program: c.program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		c.links = append(c.links, attached)
		return nil
	})
}

func (c *counter) arrived() (sum uint64, err error) {
	var each []uint64
	err = c.counted.Lookup(uint32(0), &each)
	for _, n := range each {
		sum += n
	}
	return sum, err
}

func (c *counter) close() error {
	var err error
	for _, l := range c.links {
		err = errors.Join(err, l.Close())
	}
	return errors.Join(err, c.program.Close(), c.counted.Close())
}
