package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// flowtableDelay is the age from which a UDP flow may enter a flowtable (nf_conntrack_proto_udp.c).
const flowtableDelay = 2100 * time.Millisecond

// fastPaths returns paths by a flowtable, if the kernel has flowtables.
func (b *builder) fastPaths() ([]path, error) {
	g, err := b.gateway("fast", "nftables", fewFrontends, nil)
	if err != nil {
		return nil, err
	}
	if has, err := g.hasFlowtable(); !has {
		fmt.Fprintln(b.options.Progress, "this kernel has no flowtables")
		return nil, err
	}
	p := path{name: "nftables, flowtable: known flow of 1,024", gateway: g, frame: g.frameToVIP(), flows: fewFlows, result: xdpPass}
	known := func() error { return p.exchange() }
	p.before = known
	if err := g.Do(known); err != nil {
		return nil, err
	}
	time.Sleep(flowtableDelay)
	return []path{p}, nil
}

func (g *gateway) hasFlowtable() (has bool, err error) {
	err = g.Do(func() error {
		text, err := exec.Command("nft", "list", "flowtables").Output()
		has = bytes.Contains(text, []byte("flowtable"))
		return err
	})
	return has, err
}

// exchange sends a packet of each flow, which the nodes answer, twice.
func (p path) exchange() (err error) {
	stop, err := p.gateway.echo()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	g, close, err := p.generator()
	if err != nil {
		return err
	}
	defer close()
	for range 2 {
		if _, err := g.run(p.gateway.front.Index, p.frame, p.flows); err != nil {
			return err
		}
	}
	return nil
}

// echo makes the nodes answer packets instead of counting them, until stop is called.
func (g *gateway) echo() (stop func() error, err error) {
	err = g.sink.Do(func() error {
		back, err := netlink.LinkByName("back")
		if err != nil {
			return err
		}
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "echo", Type: ebpf.SchedCLS, License: "MIT", Instructions: echoProgram()})
		if err != nil {
			return err
		}
		attached, err := link.AttachTCX(link.TCXOptions{Interface: back.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		if err != nil {
			return errors.Join(err, program.Close())
		}
		stop = func() error { return errors.Join(attached.Close(), program.Close()) }
		return nil
	})
	return stop, err
}

// echoProgram sends a UDP datagram back to its sender. Swapping source and destination does not change checksums.
func echoProgram() asm.Instructions {
	const (
		ifindex, data, dataEnd        = 40, 76, 80 // struct __sk_buff (linux/bpf.h)
		etherType, addresses, ports   = 12, 26, 34
		otherProgram, ipv4InNetwork16 = -1, 0x0008
	)
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R8, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Add.Imm(asm.R1, headers),
		asm.JGT.Reg(asm.R1, asm.R8, "other"),
		asm.LoadMem(asm.R1, asm.R7, etherType, asm.Half),
		asm.JNE.Imm(asm.R1, ipv4InNetwork16, "other"),
	}
	swap := func(at, size int16) {
		for i := at; i < at+size; i += 2 {
			program = append(program,
				asm.LoadMem(asm.R1, asm.R7, i, asm.Half), asm.LoadMem(asm.R2, asm.R7, i+size, asm.Half),
				asm.StoreMem(asm.R7, i, asm.R2, asm.Half), asm.StoreMem(asm.R7, i+size, asm.R1, asm.Half))
		}
	}
	swap(0, 6)
	swap(addresses, 4)
	swap(ports, 2)
	return append(program,
		asm.LoadMem(asm.R1, asm.R6, ifindex, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, otherProgram).WithSymbol("other"),
		asm.Return())
}
