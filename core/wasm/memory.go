package main

import "runtime/debug"

// garbagePercent lets the heap grow to five times the live data before a garbage collection. A WebAssembly module has one
// thread, which every collection stops. A call is short and most of its data lives until its end, so with the default half
// of the time would be spent on collections.
const garbagePercent = 400

func setUpMemory() { debug.SetGCPercent(garbagePercent) }
