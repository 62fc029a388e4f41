package plugin

import (
	"slices"

	pb "kubelb.k8c.io/backends/plugin/dataplanepb"
	"kubelb.k8c.io/core/model"
)

// chunkUnits is the most units of a chunk, which keeps each message far below gRPC's limit of 4 MiB. A unit is a record,
// an endpoint or a source range.
const chunkUnits = 4096

func poolUnits(p *pb.Pool) int { return 1 + len(p.GetEndpoints()) }

func frontendUnits(f *pb.Frontend) int { return 1 + len(f.GetSourceRanges()) }

func oneUnit[T any](T) int { return 1 }

// sendChunks splits a list into chunks and sends them.
func sendChunks[Record, Wire any](records []Record, toWire func(Record) Wire, units func(Wire) int, send func([]Wire) error) error {
	var chunk []Wire
	sum := 0
	for _, record := range records {
		wire := toWire(record)
		if n := units(wire); sum+n > chunkUnits && len(chunk) > 0 {
			if err := send(chunk); err != nil {
				return err
			}
			chunk, sum = nil, n
		} else {
			sum += n
		}
		chunk = append(chunk, wire)
	}
	if len(chunk) == 0 {
		return nil
	}
	return send(chunk)
}

// fromWire converts a list and stops at the first record that is malformed.
func fromWire[Wire, Record any](wires []Wire, convert func(Wire) (Record, error), records []Record) ([]Record, error) {
	records = slices.Grow(records, len(wires))
	for _, wire := range wires {
		record, err := convert(wire)
		if err != nil {
			return records, err
		}
		records = append(records, record)
	}
	return records, nil
}

func poolIDToWire(id model.PoolID) string { return string(id) }
