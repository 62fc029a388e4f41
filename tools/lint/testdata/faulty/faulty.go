// Package faulty has one fault of each kind that go vet alone does not find.
package faulty

import "os"

// Faulty has the faults that are not declarations.
func Faulty(names map[string]bool) error {
	os.Setenv("name", "value") // the error is lost
	err := os.Chdir("/")       // overwritten
	err = os.Chdir("/tmp")
	for name, _ := range names {
		println(name)
	}
	os.Remove("cleaned up")
	return err
}

func nobodyCallsIt() {}
