package image

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
)

// Parts of an SPDX document.
type (
	document struct {
		Version           string         `json:"spdxVersion"`
		License           string         `json:"dataLicense"`
		ID                string         `json:"SPDXID"`
		Name              string         `json:"name"`
		DocumentNamespace string         `json:"documentNamespace"`
		CreationInfo      creation       `json:"creationInfo"`
		Packages          []piece        `json:"packages"`
		Relationships     []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	piece struct {
		ID       string `json:"SPDXID"`
		Name     string `json:"name"`
		Version  string `json:"versionInfo"`
		Location string `json:"downloadLocation"`
		Analyzed bool   `json:"filesAnalyzed"`
	}
	relationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

// contents are what an image's files are, collected as they are written.
type contents struct {
	modules map[Module]bool
	sum     hash.Hash
}

func newContents() *contents { return &contents{map[Module]bool{}, sha256.New()} }

// add takes note of a file: all modules of a Go program, or what it is said to be.
func (c *contents) add(f File, content []byte) error {
	fmt.Fprintf(c.sum, "%s %x\n", f.Path, sha256.Sum256(content))
	if f.Module != nil {
		c.modules[*f.Module] = true
		return nil
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("%s is no Go program, and nobody says what it is: %w", f.Path, err)
	}
	c.modules[Module{"go", strings.TrimPrefix(info.GoVersion, "go")}] = true
	c.modules[Module{info.Main.Path, cmp.Or(info.Main.Version, "(devel)")}] = true
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		// Modules beside it in the same tree have paths for versions.
		if !strings.HasPrefix(d.Path, ".") {
			c.modules[Module{d.Path, d.Version}] = true
		}
	}
	return nil
}

// list is the list of contents of the image of that name.
func (c *contents) list(reference string) ([]byte, error) {
	// Without the time at which it was made, which would be another one each time.
	d := document{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: reference, DocumentNamespace: "https://kubelb.k8c.io/sbom/" + hex.EncodeToString(c.sum.Sum(nil)),
		CreationInfo: creation{"1970-01-01T00:00:00Z", []string{"Tool: pack-images"}}}
	for _, m := range slices.SortedFunc(maps.Keys(c.modules), func(a, b Module) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version)) }) {
		id := fmt.Sprintf("SPDXRef-%d", len(d.Packages)+1)
		d.Packages = append(d.Packages, piece{id, m.Name, m.Version, "NOASSERTION", false})
		d.Relationships = append(d.Relationships, relationship{d.ID, "DESCRIBES", id})
	}
	return json.MarshalIndent(d, "", " ")
}
