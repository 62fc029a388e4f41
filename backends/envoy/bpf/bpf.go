// Package bpf has the BPF program that finds packets of unknown connections. It is written in C, compiled by 'make generate', and
// committed, so that neither a build nor a host needs a compiler.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -go-package bpf -target bpfel -no-global-types -cflags "-O2 -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Unknown unknown.c
