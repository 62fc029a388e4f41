// Package repocheck holds the rules of the repository as tests.
package repocheck
