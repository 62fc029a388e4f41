// Package statefile writes small files that outlive a process. A file always has its old or its new content, never a part of it, even if the
// process is killed or the file system is full.
package statefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the content of the file. It makes the directory if there is none, for its owner alone. It does not write a file that has the
// content already, so that this needs no space. If Write fails, the file is unchanged.
func Write(path string, content []byte) error {
	if current, err := os.ReadFile(path); err == nil && bytes.Equal(current, content) {
		return nil
	}
	if err := replace(path, content); err != nil {
		return fmt.Errorf("the state file %s was not changed: %w", path, err)
	}
	return nil
}

// replace writes and syncs another file, and then renames it. Without the sync, the rename could reach the disk before the content.
func replace(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	next := path + ".next"
	if err := writeSynced(next, content); err != nil {
		return errors.Join(err, remove(next)) // an incomplete file takes space
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

// syncDir writes the new name to the disk.
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

// Aside returns the name that SetAside gives a file.
func Aside(path string) string { return path + ".damaged" }

// SetAside renames a damaged file, so that a new one can be made and people can look at the damaged one.
func SetAside(path string) error {
	if err := os.Rename(path, Aside(path)); err != nil {
		return fmt.Errorf("the state file %s is damaged and cannot be set aside: %w", path, err)
	}
	return nil
}
