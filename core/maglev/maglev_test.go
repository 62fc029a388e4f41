package maglev

import (
	"fmt"
	"slices"
	"testing"

	"kubelb.k8c.io/core/model"
)

func endpoints(n int) []model.Endpoint {
	out := make([]model.Endpoint, n)
	for i := range out {
		out[i] = model.Endpoint{ID: fmt.Sprintf("198.51.%03d.%03d", i/256, i%256), Weight: 1}
	}
	return out
}

func counts(table []uint32, n int) []int {
	out := make([]int, n)
	for _, i := range table {
		out[i]++
	}
	return out
}

func TestSharesAreEvenWithinOnePercent(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 7, 10, 40, 100, 300, 655, 1000} {
		table := Table(endpoints(n))
		ideal := float64(len(table)) / float64(n)
		for i, got := range counts(table, n) {
			if off := (float64(got) - ideal) / ideal; off > 0.01 || off < -0.01 {
				t.Errorf("%d endpoints, %d rows: endpoint %d has %d rows, %.2f %% off", n, len(table), i, got, 100*off)
			}
		}
	}
}

func TestWeightsAreKeptWithinOnePercent(t *testing.T) {
	in := endpoints(3)
	in[0].Weight, in[1].Weight, in[2].Weight = 1, 3, 4
	table := Table(in)
	for i, got := range counts(table, 3) {
		ideal := float64(len(table)) * float64(in[i].Weight) / 8
		if off := (float64(got) - ideal) / ideal; off > 0.01 || off < -0.01 {
			t.Errorf("endpoint %d of weight %d has %d of %d rows, %.2f %% off", i, in[i].Weight, got, len(table), 100*off)
		}
	}
}

func TestARemovedEndpointMovesFewRowsOfTheOthers(t *testing.T) {
	before := endpoints(20)
	table := Table(before)
	after := Table(slices.Delete(slices.Clone(before), 7, 8))
	if len(table) != len(after) {
		t.Fatalf("table size went from %d to %d, but the test needs equal sizes", len(table), len(after))
	}
	moved := 0
	for row := range table {
		if table[row] != 7 && before[table[row]].ID != slices.Delete(slices.Clone(before), 7, 8)[after[row]].ID {
			moved++
		}
	}
	if limit := len(table) * 6 / 100; moved > limit {
		t.Errorf("%d of %d rows moved between endpoints that both stay, more than %d", moved, len(table), limit)
	}
}

func TestUnhealthyEndpointsLoseTheirOwnRowsOnly(t *testing.T) {
	in := endpoints(10)
	before := Table(in)
	for _, state := range []model.EndpointState{model.Unhealthy, model.Draining} {
		in[4].State = state
		after := Table(in)
		replacements := map[uint32]int{}
		for row := range before {
			switch {
			case before[row] != 4 && before[row] != after[row]:
				t.Fatalf("%s: row %d moved from %d to %d", state, row, before[row], after[row])
			case after[row] == 4:
				t.Fatalf("%s: the endpoint keeps row %d", state, row)
			case before[row] == 4:
				replacements[after[row]]++
			}
		}
		if len(replacements) != 9 {
			t.Errorf("%s: rows went to %d of 9 other endpoints", state, len(replacements))
		}
	}
}

func TestGatewaysThatDisagreeDifferInThatEndpointsRowsOnly(t *testing.T) {
	one, other := endpoints(10), endpoints(10)
	one[4].State, other[4].State = model.Unhealthy, model.Unhealthy
	other[6].State = model.Unhealthy
	a, b := Table(one), Table(other)
	for row := range a {
		if a[row] != b[row] && a[row] != 6 {
			t.Fatalf("row %d: %d on one gateway, %d on the other", row, a[row], b[row])
		}
	}
}

func TestWhenNoEndpointIsActiveUnhealthyOnesKeepTheirRows(t *testing.T) {
	in := endpoints(3)
	for i := range in {
		in[i].State = model.Unhealthy
	}
	for i, got := range counts(Table(in), 3) {
		if got == 0 {
			t.Errorf("endpoint %d has no rows", i)
		}
	}
	in[1].State = model.Draining
	if got := counts(Table(in), 3); got[1] != 0 || got[0] == 0 || got[2] == 0 {
		t.Errorf("draining beside unhealthy: rows %v", got)
	}
}

func TestEmptyPoolHasNoTable(t *testing.T) {
	if table := Table(nil); table != nil {
		t.Errorf("got %d rows", len(table))
	}
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := endpoints(n)
			for b.Loop() {
				Table(in)
			}
		})
	}
}
