package main

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// alone returns the command that runs a case alone, with the options that this run has.
func (f flags) alone(name string) string {
	program := os.Args[0]
	words := []string{quote(program), option("backend", f.backend)}
	for _, key := range slices.Sorted(maps.Keys(f.options)) {
		words = append(words, option("backend-option", key+"="+f.options[key]))
	}
	if f.upgrade != "" {
		words = append(words, option("upgrade-to", f.upgrade))
	}
	if f.switchTo != "" {
		words = append(words, option("switch-to", f.switchTo))
	}
	if f.patience != 1 {
		words = append(words, option("patience", fmt.Sprint(f.patience)))
	}
	return strings.Join(append(words, option("case", name), "-v"), " ")
}

func option(name, value string) string { return "--" + name + "=" + quote(value) }

// plain matches words that a shell reads as they are.
var plain = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// quote writes a word for a shell.
func quote(word string) string {
	if plain.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
