// Package kernels tests dataplanes on different kernels. It boots kernels of Debian's archive under emulation, and runs programs on them as root. The guest has
// what the tests of dataplanes need: network namespaces, nf_tables, BPF and nft.
//
// Kernels, nft and the C library come from Debian's packages for the architecture, and are cached outside the checkout. Each boot has its own initramfs (cpio.go),
// whose first process is package guest.
package kernels
