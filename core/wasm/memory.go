package main

import "runtime/debug"

// garbagePercent lets the heap grow to five times what lives before it is collected. A call is short and most of what it
// makes lives until its end, while a WebAssembly module has one thread, which every collection stops: half of the time goes
// there otherwise.
const garbagePercent = 400

func setUpMemory() { debug.SetGCPercent(garbagePercent) }
