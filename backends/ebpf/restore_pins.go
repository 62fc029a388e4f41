package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// pinnable is a map or a link.
type pinnable interface {
	Pin(path string) error
	Unpin() error
}

// restorePins pins the objects again whose files another program has removed, and returns an error that reports this. Without its file an object ends
// with this process, and with it all flows. A failure is returned once.
func (k *kernel) restorePins() error {
	restored, err := k.pinMissing()
	text := ""
	if err != nil {
		text = err.Error()
		err = fmt.Errorf("another program removed files in %s, which cannot be restored: flows will end with the plugin's process: %w", k.dir, err)
	}
	if k.pinProblem == text {
		err = nil
	}
	k.pinProblem = text
	if restored > 0 {
		err = errors.Join(err, fmt.Errorf("another program removed %d files in %s; they are restored", restored, k.dir))
	}
	return err
}

// pinMissing pins the objects without a file, and returns their number.
func (k *kernel) pinMissing() (restored int, err error) {
	_, err = os.Lstat(k.dir)
	lost := errors.Is(err, fs.ErrNotExist)
	if lost {
		if err := os.Mkdir(k.dir, 0o700); err != nil {
			return 0, err
		}
	}
	for path, object := range k.pinnedObjects() {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(object.Unpin(), object.Pin(path)); err != nil {
			return restored, err
		}
		restored++
	}
	if lost {
		return restored, k.restoreMarkers()
	}
	return restored, nil
}

// pinnedObjects returns the maps and links that a new process adopts, by the paths of their files.
func (k *kernel) pinnedObjects() map[string]pinnable {
	out := map[string]pinnable{}
	for _, maps := range []reflect.Value{reflect.ValueOf(k.objects.TcMaps), reflect.ValueOf(k.xdp.XDPMaps)} {
		for i := range maps.NumField() {
			name := maps.Type().Field(i).Tag.Get("ebpf")
			if m, ok := maps.Field(i).Interface().(*ebpf.Map); ok && m != nil && !slices.Contains(unpinned, name) {
				out[filepath.Join(k.dir, name)] = m
			}
		}
	}
	for _, spec := range recordMaps() {
		out[filepath.Join(k.dir, spec.Name)] = k.maps[spec.Name]
	}
	for index, at := range k.attached {
		for kind, h := range map[string]hook{"link": at.tc, "xdp": at.xdp} {
			if l, ok := h.(link.Link); ok {
				out[k.pin(kind, index)] = l
			}
		}
	}
	return out
}

// restoreMarkers creates the markers of queueing disciplines again, where no other program has a filter.
func (k *kernel) restoreMarkers() error {
	var errs []error
	for _, at := range k.attached {
		f, ok := at.tc.(*filter)
		if !ok {
			continue
		}
		found, err := f.list()
		if err == nil && allKubeLB(found) {
			err = createMarker(f.marker)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
