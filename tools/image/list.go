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

// contents collects the software in an image while its files are written.
type contents struct {
	modules map[Module]bool
	sum     hash.Hash
}

func newContents() *contents { return &contents{map[Module]bool{}, sha256.New()} }

// add records the Module of a file, or all modules of a Go program.
func (c *contents) add(f File, content []byte) error {
	fmt.Fprintf(c.sum, "%s %x\n", f.Path, sha256.Sum256(content))
	if f.Module != nil {
		c.modules[*f.Module] = true
		return nil
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("%s is not a Go program: give it a Module: %w", f.Path, err)
	}
	c.modules[Module{"go", strings.TrimPrefix(info.GoVersion, "go")}] = true
	c.modules[Module{info.Main.Path, cmp.Or(info.Main.Version, "(devel)")}] = true
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		// Modules of this repository have a path and no version.
		if !strings.HasPrefix(d.Path, ".") {
			c.modules[Module{d.Path, d.Version}] = true
		}
	}
	return nil
}

// list returns the list of contents of the image with this name.
func (c *contents) list(reference string) ([]byte, error) {
	// The time is constant, so that the same files give the same bytes.
	d := document{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: reference, DocumentNamespace: "https://kubelb.k8c.io/sbom/" + hex.EncodeToString(c.sum.Sum(nil)),
		CreationInfo: creation{"1970-01-01T00:00:00Z", []string{"Tool: pack-images"}}}
	for _, m := range slices.SortedFunc(maps.Keys(c.modules), func(a, b Module) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version)) }) {
		id := fmt.Sprintf("SPDXRef-%d", len(d.Packages)+1)
		d.Packages = append(d.Packages, piece{id, m.Name, m.Version, "NOASSERTION", false})
		d.Relationships = append(d.Relationships, relationship{d.ID, "DESCRIBES", id})
	}
	return json.MarshalIndent(d, "", " ")
}
