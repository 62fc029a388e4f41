package conformance

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"kubelb.k8c.io/backends/dataplane"
	"kubelb.k8c.io/backends/plugin"
	"kubelb.k8c.io/core/model"
)

type netipPrefix = netip.Prefix

// prefix picks the one of the family.
func prefix(v4 bool, four, six string) netip.Prefix {
	if v4 {
		return netip.MustParsePrefix(four)
	}
	return netip.MustParsePrefix(six)
}

func frontendOn(f model.Frontend, poolID string) model.Frontend {
	f.Pool = model.PoolID("t/" + poolID)
	return f
}

func runNft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}

// configureAnother starts a second backend on the rig's state directory.
func (r *rig) configureAnother() error {
	return r.gateway.Do(func() error {
		p, err := plugin.Load(plugin.Options{Path: r.path, SocketDir: r.socketDir(), Log: r.t.Output()})
		if err != nil {
			return err
		}
		defer p.Stop()
		return p.Configure(r.t.Context(), dataplane.Config{Node: "gateway", StateDir: r.state})
	})
}
