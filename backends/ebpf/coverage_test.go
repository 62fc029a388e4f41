package ebpf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// coverage records which blocks of instructions of the programs have been reached. At the start of each block it inserts code that writes
// into a map, with a register that the block does not read.
type coverage struct {
	reached map[string]*ebpf.Map
	blocks  map[string][]block
}

// observed is the coverage of all tests of this package, if KUBELB_COVERAGE is set. With KUBELB_MISSED the report lists the blocks that were not reached.
var observed *coverage

func TestMain(m *testing.M) {
	if os.Getenv("KUBELB_COVERAGE") != "" {
		observed = &coverage{reached: map[string]*ebpf.Map{}, blocks: map[string][]block{}}
	}
	code := m.Run()
	if observed != nil {
		observed.report()
	}
	os.Exit(code)
}

// edit returns the change of programs before the backend loads them.
func (c *coverage) edit() func(*ebpf.CollectionSpec) error {
	if c == nil {
		return nil
	}
	return c.instrument
}

// block is the start of a block in the source.
type block struct {
	file, text string
	line       uint32
}

// instrument inserts the code into all programs.
func (c *coverage) instrument(spec *ebpf.CollectionSpec) error {
	for name, program := range spec.Programs {
		starts := blockStarts(program.Instructions)
		if c.reached[name] == nil {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(starts)+7) &^ 7, MaxEntries: 1})
			if err != nil {
				return err
			}
			c.reached[name] = m
		}
		c.blocks[name] = make([]block, len(starts))
		var err error
		if program.Instructions, err = c.rewrite(name, program.Instructions, starts); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// jumps returns the raw offset to which an instruction may jump, and whether the next instruction may follow it.
func jumps(at asm.RawInstructionOffset, ins *asm.Instruction) (to int, jumps, goesOn bool) {
	if !ins.OpCode.Class().IsJump() {
		return 0, false, true
	}
	switch op := ins.OpCode.JumpOp(); {
	case op == asm.Call:
		return 0, false, true
	case op == asm.Exit:
		return 0, false, false
	case op == asm.Ja && ins.OpCode.Class() == asm.Jump32Class:
		return int(at) + 1 + int(ins.Constant), true, false
	default:
		return int(at) + 1 + int(ins.Offset), true, op != asm.Ja
	}
}

// blockStarts returns raw offsets: starts of functions, targets of jumps, and instructions after conditional jumps.
func blockStarts(program asm.Instructions) []int {
	starts := map[int]bool{}
	for iter := program.Iterate(); iter.Next(); {
		if iter.Ins.Symbol() != "" {
			starts[int(iter.Offset)] = true
		}
		if to, does, goesOn := jumps(iter.Offset, iter.Ins); does {
			starts[to] = true
			if goesOn {
				starts[int(iter.Offset)+1] = true
			}
		}
	}
	var sorted []int
	for at := range starts {
		sorted = append(sorted, at)
	}
	sort.Ints(sorted)
	return sorted
}

// rewrite inserts the code. Jumps get labels, since their distances change.
func (c *coverage) rewrite(name string, program asm.Instructions, starts []int) (asm.Instructions, error) {
	live := liveness(program)
	label := func(at int) string { return fmt.Sprintf("block %d", at) }
	names := map[int]string{}
	for iter := program.Iterate(); iter.Next(); {
		names[int(iter.Offset)] = iter.Ins.Symbol()
	}
	var out asm.Instructions
	var last block
	for iter := program.Iterate(); iter.Next(); {
		ins := *iter.Ins
		if source, ok := ins.Source().(*btf.Line); ok {
			last = block{filepath.Base(source.FileName()), strings.TrimSpace(source.Line()), source.LineNumber()}
		}
		if to, does, _ := jumps(iter.Offset, &ins); does {
			target := label(to)
			if names[to] != "" {
				target = names[to]
			}
			ins = ins.WithReference(target)
			ins.Offset = -1
			if ins.OpCode.JumpOp() == asm.Ja && ins.OpCode.Class() == asm.Jump32Class {
				ins.Offset, ins.Constant = 0, -1
			}
		}
		number, starting := slices.BinarySearch(starts, int(iter.Offset))
		if !starting {
			out = append(out, ins)
			continue
		}
		symbol := ins.Symbol()
		if symbol == "" {
			symbol = label(int(iter.Offset))
		}
		free, found := freeRegister(live[iter.Index])
		if !found {
			out = append(out, ins.WithSymbol(symbol))
			continue
		}
		c.blocks[name][number] = last
		first := asm.LoadMapValue(free, c.reached[name].FD(), uint32(number)).WithSymbol(symbol)
		if source := ins.Source(); source != nil {
			first = first.WithSource(source)
		}
		if function := btf.FuncMetadata(&ins); function != nil {
			first = btf.WithFuncMetadata(first, function)
			ins = btf.WithFuncMetadata(ins, nil)
		}
		out = append(out, first, asm.StoreImm(free, 0, 1, asm.Byte), ins.WithSymbol(""))
	}
	return out, nil
}

// registers is a set of registers.
type registers uint16

func of(all ...asm.Register) (r registers) {
	for _, one := range all {
		r |= 1 << one
	}
	return r
}

func freeRegister(live registers) (asm.Register, bool) {
	for _, r := range []asm.Register{asm.R0, asm.R5, asm.R4, asm.R3, asm.R2, asm.R1, asm.R9, asm.R8, asm.R7, asm.R6} {
		if live&of(r) == 0 {
			return r, true
		}
	}
	return 0, false
}

// effect returns the registers that an instruction reads, and the registers that the instruction writes.
func effect(ins *asm.Instruction) (reads, writes registers) {
	op := ins.OpCode
	bySource := registers(0)
	switch class := op.Class(); {
	case class.IsALU():
		if op.Source() == asm.RegSource && op.ALUOp() != asm.Swap {
			bySource = of(ins.Src)
		}
		if op.ALUOp() == asm.Mov {
			return bySource, of(ins.Dst)
		}
		return bySource | of(ins.Dst), of(ins.Dst)
	case class == asm.LdClass:
		return 0, of(ins.Dst)
	case class == asm.LdXClass:
		return of(ins.Src), of(ins.Dst)
	case class == asm.StClass:
		return of(ins.Dst), 0
	case class == asm.StXClass:
		return of(ins.Dst, ins.Src, asm.R0), 0
	case op.JumpOp() == asm.Call:
		return of(asm.R1, asm.R2, asm.R3, asm.R4, asm.R5), of(asm.R0, asm.R1, asm.R2, asm.R3, asm.R4, asm.R5)
	case op.JumpOp() == asm.Exit:
		return of(asm.R0), 0
	case op.JumpOp() == asm.Ja:
		return 0, 0
	}
	if op.Source() == asm.RegSource {
		bySource = of(ins.Src)
	}
	return bySource | of(ins.Dst), 0
}

// liveness returns, for each instruction, the registers whose value may be read from there on.
func liveness(program asm.Instructions) []registers {
	index := map[int]int{}
	var offsets []asm.RawInstructionOffset
	for iter := program.Iterate(); iter.Next(); {
		index[int(iter.Offset)] = iter.Index
		offsets = append(offsets, iter.Offset)
	}
	live := make([]registers, len(program)+1)
	for changed := true; changed; {
		changed = false
		for i := len(program) - 1; i >= 0; i-- {
			var after registers
			to, does, goesOn := jumps(offsets[i], &program[i])
			if does {
				after |= live[index[to]]
			}
			if goesOn {
				after |= live[i+1]
			}
			reads, writes := effect(&program[i])
			if now := after&^writes | reads; now != live[i] {
				live[i], changed = now, true
			}
		}
	}
	return live
}

// report prints how many blocks have been reached, and where the others are.
func (c *coverage) report() {
	for name, m := range c.reached {
		reached := make([]byte, m.ValueSize())
		if err := m.Lookup(uint32(0), &reached); err != nil {
			fmt.Fprintln(os.Stderr, "coverage:", err)
			continue
		}
		var met, all int
		missed := map[block]int{}
		for i, b := range c.blocks[name] {
			if b == (block{}) {
				continue
			}
			all++
			if reached[i] != 0 {
				met++
			} else {
				missed[b]++
			}
		}
		fmt.Printf("%s: %d of %d blocks reached, %d cannot be observed\n", name, met, all, len(c.blocks[name])-all)
		var lines []string
		for b, n := range missed {
			lines = append(lines, fmt.Sprintf("%s:%d: %d not reached: %s", b.file, b.line, n, b.text))
		}
		sort.Strings(lines)
		if os.Getenv("KUBELB_MISSED") != "" {
			fmt.Println(strings.Join(lines, "\n"))
		}
	}
}
