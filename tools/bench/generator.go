package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// generator makes packets in the kernel: each run of its program is a frame, as if the driver of an interface had received it
// (BPF_F_TEST_XDP_LIVE_FRAMES, Documentation/bpf/bpf_prog_run.rst). The program writes the headers, with the client's port and address
// of the next flow, because the kernel reuses pages with changed headers. Then it calls the program in the map then, or returns the
// result.
type generator struct {
	program *ebpf.Program
	next    *ebpf.Map
	then    *ebpf.Map
}

// XDP results (include/uapi/linux/bpf.h), and BPF_F_XDP_HAS_FRAGS.
const (
	xdpDrop, xdpPass = 1, 2
	hasFragments     = 1 << 5
	liveFrames       = 1 << 1
)

// portsOfClient is the number of ports of each client address, a power of two.
const portsOfClient = 1 << 14

// newGenerator returns a generator that cycles through the flows. It passes packets to the XDP program then, or returns result if then is nil.
func newGenerator(frame []byte, flows uint32, then *ebpf.Program, result int32) (_ *generator, err error) {
	g := &generator{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.next, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return nil, err
	}
	if g.then, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return nil, err
	}
	if then != nil {
		if err := g.then.Put(uint32(0), then); err != nil {
			return nil, fmt.Errorf("set the program after the generator: %w", err)
		}
	}
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R8, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Add.Imm(asm.R1, headers),
		asm.JGT.Reg(asm.R1, asm.R8, "out"),
	}
	for at := 0; at < headers; at += 2 {
		program = append(program, asm.StoreImm(asm.R7, int16(at), int64(binary.NativeEndian.Uint16(frame[at:])), asm.Half))
	}
	program = append(program, g.nextFlow(flows)...)
	program = append(program,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, g.then.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, result).WithSymbol("out"),
		asm.Return())
	g.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "generator", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: hasFragments, License: "MIT", Instructions: program})
	return g, err
}

// headers is the length of the headers that the program writes: Ethernet, IPv4 and UDP.
const headers = 14 + 20 + 8

// nextFlow writes the client's port and address of the next flow into the headers at R7.
func (g *generator) nextFlow(flows uint32) asm.Instructions {
	const clientLow, identification, port = 14 + 14, 14 + 4, 14 + 20
	return asm.Instructions{
		asm.LoadMapValue(asm.R2, g.next.FD(), 0),
		asm.LoadMem(asm.R3, asm.R2, 0, asm.DWord),
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.Add.Imm(asm.R4, 1),
		asm.StoreMem(asm.R2, 0, asm.R4, asm.DWord),
		asm.Mov.Imm(asm.R4, int32(flows)),
		asm.Mod.Reg(asm.R3, asm.R4),
		// The client's port.
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.And.Imm(asm.R4, portsOfClient-1),
		asm.Add.Imm(asm.R4, 32768),
		asm.HostTo(asm.BE, asm.R4, asm.Half),
		asm.StoreMem(asm.R7, port, asm.R4, asm.Half),
		// The low half of the client's address, and an identification with which the header's checksum stays the same.
		asm.RSh.Imm(asm.R3, 14),
		asm.And.Imm(asm.R3, 0xffff),
		asm.Mov.Imm(asm.R4, 0xffff),
		asm.Sub.Reg(asm.R4, asm.R3),
		asm.StoreMem(asm.R7, clientLow, asm.R3, asm.Half),
		asm.StoreMem(asm.R7, identification, asm.R4, asm.Half),
	}
}

func (g *generator) close() {
	_ = errors.Join(g.program.Close(), g.next.Close(), g.then.Close())
}

// clients is the network of the clients. The low half of the address is the number of the flow.
var clients = netip.MustParseAddr("10.77.0.0")

// frame returns a datagram from a client to a destination. With the checksum of Ethernet it has 64 bytes.
func frame(to net.HardwareAddr, destination netip.AddrPort) []byte {
	out := make([]byte, 60)
	copy(out, to)
	copy(out[6:], net.HardwareAddr{2, 0, 0, 0, 0, 1})
	copy(out[12:], []byte{0x08, 0})
	ip := out[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], 0xffff)
	copy(ip[12:], clients.AsSlice())
	copy(ip[16:], destination.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(ip[22:], destination.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	return out
}

// run sends n frames to the interface and returns the processor time of a frame in nanoseconds. It is the time of this thread, which
// handles each frame until it is dropped.
func (g *generator) run(at int, frame []byte, n uint32) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	context := struct{ data, end, meta, ingress, queue, egress uint32 }{end: uint32(len(frame)), ingress: uint32(at)}
	before, err := threadTime()
	if err != nil {
		return 0, err
	}
	if _, err := g.program.Run(&ebpf.RunOptions{Data: frame, Context: context, Repeat: n, Flags: liveFrames, BatchSize: 64}); err != nil {
		return 0, fmt.Errorf("run frames: %w", err)
	}
	after, err := threadTime()
	return float64(after-before) / float64(n), err
}

func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}
