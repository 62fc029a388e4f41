// Package kernels judges dataplanes on kernels. It boots kernels of Debian's archive under emulation and runs programs in them, as root, with everything that this repository's tests
// of dataplanes need: network namespaces, nf_tables, BPF, and nft.
//
// A kernel comes from its package, and so do nft and the C library, for any architecture. All is cached outside of the checkout. The initramfs is made anew
// for each boot (cpio.go); its first process is package guest.
package kernels
