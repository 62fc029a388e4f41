package nftables

import "kubelb.k8c.io/core/maglev"

// tableRow returns the row of core/maglev's table that the kernel's row stands for. A flow's row in a table of another size has to be the hash modulo that
// size, so that a pool that outgrows its table keeps its flows. The kernel does not compute a modulo. It scales the hash: in a table with more layers, the
// quotient has more digits. The leading ones are the row in the layer. The others select the layer, the last one first.
func tableRow(row, size int) int {
	layers := maglev.Layers(size)
	layer := 0
	for rest, weight := row%layers, layers/2; weight > 0; rest, weight = rest/2, weight/2 {
		layer += rest % 2 * weight
	}
	return row/layers + layer*(size/layers)
}

// planRows plans the rows that differ.
func planRows(out *plan, old, next *poolState) {
	for row := range max(old.size, next.size) {
		had, has := row < old.size, row < next.size
		if had && has && old.rows != nil && old.rows[row] == next.rows[row] {
			continue
		}
		if had {
			out.remove(mapRows, rowKey(next.mark, row))
		}
		if has {
			out.add(mapRows, rowKey(next.mark, row), mark(next.rows[row]), "")
		}
	}
}
