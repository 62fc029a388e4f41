// Package corecheck proves the core: a corpus of cases with what becomes of each, the same answers as WebAssembly, and
// properties that hold for any input.
package corecheck
