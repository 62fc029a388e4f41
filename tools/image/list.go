package image

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
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

// list is the image's list of contents: all modules of its Go programs, and what else is named.
func (i Image) list() ([]byte, error) {
	modules := map[Module]bool{}
	for _, f := range i.Files {
		if f.Module != nil {
			modules[*f.Module] = true
			continue
		}
		info, err := buildinfo.ReadFile(f.Source)
		if err != nil {
			return nil, fmt.Errorf("%s is no Go program, and nobody says what it is: %w", f.Path, err)
		}
		modules[Module{"go", strings.TrimPrefix(info.GoVersion, "go")}] = true
		modules[Module{info.Main.Path, cmp.Or(info.Main.Version, "(devel)")}] = true
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			// Modules beside it in the same tree have paths for versions.
			if !strings.HasPrefix(d.Path, ".") {
				modules[Module{d.Path, d.Version}] = true
			}
		}
	}
	// Without the time at which it was made, which would be another one each time.
	d := document{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: i.Reference,
		CreationInfo: creation{"1970-01-01T00:00:00Z", []string{"Tool: pack-images"}}}
	for _, m := range slices.SortedFunc(maps.Keys(modules), func(a, b Module) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version)) }) {
		id := fmt.Sprintf("SPDXRef-%d", len(d.Packages)+1)
		d.Packages = append(d.Packages, piece{id, m.Name, m.Version, "NOASSERTION", false})
		d.Relationships = append(d.Relationships, relationship{d.ID, "DESCRIBES", id})
	}
	sum := sha256.New()
	for _, f := range i.Files {
		content, err := os.ReadFile(f.Source)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(sum, "%s %x\n", f.Path, sha256.Sum256(content))
	}
	d.DocumentNamespace = "https://kubelb.k8c.io/sbom/" + hex.EncodeToString(sum.Sum(nil))
	return json.MarshalIndent(d, "", " ")
}
