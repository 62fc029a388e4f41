package phases

import (
	"fmt"
	"os"
)

// processors are the times of all processors from /proc/stat (proc_stat(5)), in ticks.
type processors struct{ busy, idle uint64 }

// readProcessors returns zeros if the file does not exist.
func readProcessors() (p processors) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return p
	}
	var user, nice, system, idle, wait, irq, soft uint64
	if _, err := fmt.Sscanf(string(text), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft); err != nil {
		return p
	}
	return processors{busy: user + nice + system + irq + soft, idle: idle + wait}
}

// busySince returns the share of the time that was not idle.
func (p processors) busySince(before processors) float64 {
	busy, all := p.busy-before.busy, p.busy-before.busy+p.idle-before.idle
	if all == 0 {
		return 0
	}
	return float64(busy) / float64(all)
}
