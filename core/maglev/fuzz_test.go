package maglev

import (
	"fmt"
	"slices"
	"testing"

	"kubelb.k8c.io/core/model"
)

// FuzzTable takes two bytes for each endpoint: its weight, and its state with the upper bits of the weight.
func FuzzTable(f *testing.F) {
	f.Add([]byte{1, 0})
	f.Add([]byte{1, 0, 1, 1, 1, 2})
	f.Add([]byte{200, 0xfc, 1, 1, 0, 0, 7, 2})
	f.Add(slices.Repeat([]byte{1, 0}, 60))
	f.Fuzz(func(t *testing.T, data []byte) {
		var in []model.Endpoint
		for ; len(data) >= 2 && len(in) < 100; data = data[2:] {
			in = append(in, model.Endpoint{ID: fmt.Sprintf("198.51.100.%03d", len(in)), Weight: uint16(data[1]>>2)<<8 | uint16(data[0]), State: model.EndpointState(data[1] % 3)})
		}
		table := Table(in)
		if len(table) != Size(in) || len(in) > 0 && !slices.Contains(Sizes(), len(table)) {
			t.Fatalf("%d rows, of size %d", len(table), Size(in))
		}
		if !slices.Equal(table, Table(in)) {
			t.Fatal("a second table differs")
		}
		usable := usableState(in)
		for row, i := range table {
			if int(i) >= len(in) || in[i].State != usable {
				t.Fatalf("row %d is endpoint %d: %+v", row, i, in)
			}
		}
	})
}
