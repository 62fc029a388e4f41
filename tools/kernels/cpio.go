package kernels

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
)

// archive writes an initramfs: a cpio archive in the format newc (kernel documentation, driver-api/early-userspace/buffer-format).
type archive struct {
	to    *bufio.Writer
	inode int
	made  map[string]bool
	err   error
}

func newArchive(to io.Writer) *archive {
	return &archive{to: bufio.NewWriterSize(to, 1<<20), made: map[string]bool{"/": true, ".": true}}
}

// Kinds of files (inode(7)).
const (
	kindDirectory = 0o040000
	kindFile      = 0o100000
	kindLink      = 0o120000
)

// entry writes the header of a file. The caller writes size bytes and padding.
func (a *archive) entry(name string, mode uint32, size int64) {
	a.inode++
	a.printf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad(int64(110 + len(name) + 1))
}

func (a *archive) printf(format string, args ...any) {
	if a.err == nil {
		_, a.err = fmt.Fprintf(a.to, format, args...)
	}
}

// pad writes padding up to a multiple of four bytes.
func (a *archive) pad(written int64) { a.printf("%s", "\x00\x00\x00"[:(4-written%4)%4]) }

// directory adds a directory and its parents.
func (a *archive) directory(name string) {
	if a.made[name] {
		return
	}
	a.directory(path.Dir(name))
	a.made[name] = true
	a.entry(name[1:], kindDirectory|0o755, 0)
}

// write adds a file with the content.
func (a *archive) write(name string, content []byte) {
	a.directory(path.Dir(name))
	a.entry(name[1:], kindFile|0o755, int64(len(content)))
	a.printf("%s", content)
	a.pad(int64(len(content)))
}

func (a *archive) link(name, to string) {
	a.directory(path.Dir(name))
	a.entry(name[1:], kindLink|0o777, int64(len(to)))
	a.printf("%s", to)
	a.pad(int64(len(to)))
}

// file adds a file or a symbolic link of this machine.
func (a *archive) file(name, source string) {
	if a.err != nil {
		return
	}
	info, err := os.Lstat(source)
	if err != nil {
		a.err = err
		return
	}
	if info.Mode()&os.ModeSymlink != 0 {
		var to string
		if to, a.err = os.Readlink(source); a.err == nil {
			a.link(name, to)
		}
		return
	}
	content, err := os.Open(source)
	if err != nil {
		a.err = err
		return
	}
	defer content.Close()
	a.directory(path.Dir(name))
	a.entry(name[1:], kindFile|0o755, info.Size())
	if a.err == nil {
		_, a.err = io.CopyN(a.to, content, info.Size())
	}
	a.pad(info.Size())
}

// close ends the archive.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0)
	if a.err != nil {
		return fmt.Errorf("write initramfs: %w", a.err)
	}
	return a.to.Flush()
}
