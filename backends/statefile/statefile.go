// Package statefile keeps small files that outlive a process. Each is there as it was or as it is to be, never a part of it, whatever is
// killed and however full the file system is.
package statefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write gives the file this content, and the directory to its owner alone if it has to be made. A file that has the content already is not
// touched, so that it needs no room. If Write fails the file is as it was.
func Write(path string, content []byte) error {
	if is, err := os.ReadFile(path); err == nil && bytes.Equal(is, content) {
		return nil
	}
	if err := replace(path, content); err != nil {
		return fmt.Errorf("the state file %s stays as it was: %w", path, err)
	}
	return nil
}

// replace writes beside the file, and puts that in its place once the disk has it: a rename may reach the disk before the content does.
func replace(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	next := path + ".next"
	if err := writeSynced(next, content); err != nil {
		return errors.Join(err, remove(next)) // a part of it takes room that others need
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(err, remove(next))
	}
	return syncDir(filepath.Dir(path))
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDir has the disk know of the new name.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Aside is where SetAside leaves a file.
func Aside(path string) string { return path + ".damaged" }

// SetAside gives a file that cannot be used another name, so that a new one can be made and people can look at the old one.
func SetAside(path string) error {
	if err := os.Rename(path, Aside(path)); err != nil {
		return fmt.Errorf("the state file %s is damaged and cannot be set aside: %w", path, err)
	}
	return nil
}
