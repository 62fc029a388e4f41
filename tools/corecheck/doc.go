// Package corecheck tests the core: with a corpus of inputs and their expected outputs, as WebAssembly, and by properties that
// hold for any input.
package corecheck
