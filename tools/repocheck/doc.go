// Package repocheck checks the rules of the repository. It has only tests.
package repocheck
