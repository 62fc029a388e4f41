package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// seconds is a time that JSON has in seconds, as the text form and the hub's API do. A fraction is kept.
type seconds time.Duration

// MarshalJSON writes a number with as many decimals as it needs.
func (s seconds) MarshalJSON() ([]byte, error) {
	whole, rest := time.Duration(s)/time.Second, time.Duration(s)%time.Second
	sign := ""
	if s < 0 {
		sign, whole, rest = "-", -whole, -rest
	}
	text := fmt.Sprintf("%s%d.%09d", sign, whole, rest)
	return []byte(strings.TrimSuffix(strings.TrimRight(text, "0"), ".")), nil
}

// UnmarshalJSON reads a number without an exponent.
func (s *seconds) UnmarshalJSON(text []byte) error {
	d, err := time.ParseDuration(string(text) + "s")
	if err != nil {
		return fmt.Errorf("%s is not a number of seconds", text)
	}
	*s = seconds(d)
	return nil
}

// frontendFields are the fields of a frontend without its methods.
type frontendFields Frontend

// frontendJSON is a frontend in JSON.
type frontendJSON struct {
	frontendFields
	AffinitySeconds seconds `json:"affinitySeconds,omitempty"`
	IdleSeconds     seconds `json:"idleSeconds,omitempty"`
}

// MarshalJSON writes all fields. Times are in seconds.
func (f Frontend) MarshalJSON() ([]byte, error) {
	return json.Marshal(frontendJSON{frontendFields(f), seconds(f.AffinityTimeout), seconds(f.IdleTimeout)})
}

// UnmarshalJSON reads what MarshalJSON writes. Fields that are absent stay as they are.
func (f *Frontend) UnmarshalJSON(text []byte) error {
	read := frontendJSON{frontendFields(*f), seconds(f.AffinityTimeout), seconds(f.IdleTimeout)}
	if err := json.Unmarshal(text, &read); err != nil {
		return err
	}
	*f = Frontend(read.frontendFields)
	f.AffinityTimeout, f.IdleTimeout = time.Duration(read.AffinitySeconds), time.Duration(read.IdleSeconds)
	return nil
}

// digestsJSON are digests in JSON: the key of a frontend has several fields, so it cannot be the key of an object.
type digestsJSON struct {
	Pools     map[PoolID]Digest `json:"pools"`
	Frontends []frontendDigest  `json:"frontends"`
}

type frontendDigest struct {
	FrontendKey
	Digest Digest `json:"digest"`
}

// MarshalJSON writes frontends as a list.
func (d Digests) MarshalJSON() ([]byte, error) {
	out := digestsJSON{Pools: d.Pools, Frontends: []frontendDigest{}}
	for _, key := range slices.SortedFunc(maps.Keys(d.Frontends), FrontendKey.Compare) {
		out.Frontends = append(out.Frontends, frontendDigest{key, d.Frontends[key]})
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes. The digests are writable.
func (d *Digests) UnmarshalJSON(text []byte) error {
	var read digestsJSON
	if err := json.Unmarshal(text, &read); err != nil {
		return err
	}
	*d = NewDigests()
	for id, digest := range read.Pools {
		d.Pools[id] = digest
	}
	for _, f := range read.Frontends {
		d.Frontends[f.FrontendKey] = f.Digest
	}
	return nil
}
