package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"kubelb.k8c.io/core/model"
)

func traceCommand() *cobra.Command {
	var hub hubFlags
	var output string
	cmd := &cobra.Command{
		Use:   "trace ADDRESS:PORT[/udp]",
		Short: "Show which gateway answers for an address, and to which endpoints it forwards a port",
		Long: `Follow a client's packet: show the AddressPool of the address, the LoadBalancer that has the address, the gateway that answers
for it, and the endpoints to which this gateway forwards the port. The command uses the same objects and the same rules as gateways.
It does not know which endpoints are healthy, because each gateway checks that itself.

The exit status is 1 if the packet is not served.`,
		Example: `  kubelb trace 203.0.113.1:443
  kubelb trace '[2001:db8:f::1]:53/udp'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, protocol, err := parseFrontend(args[0])
			if err != nil {
				return err
			}
			h, err := hub.read(cmd.Context())
			if err != nil {
				return err
			}
			t := h.Trace(to, protocol)
			if output != "text" {
				err = printAs(cmd.OutOrStdout(), output, t)
			} else {
				err = t.Text(cmd.OutOrStdout())
			}
			if err == nil && t.Ends != "" {
				return errNotServed
			}
			return err
		},
	}
	hub.add(cmd.Flags())
	addOutput(cmd, &output)
	return cmd
}

func parseFrontend(text string) (netip.AddrPort, model.Protocol, error) {
	at, word, _ := strings.Cut(text, "/")
	protocol, known := model.ParseProtocol(strings.ToUpper(word))
	to, err := netip.ParseAddrPort(at)
	if err != nil || !known || to.Port() == 0 {
		return to, protocol, fmt.Errorf("%q: use ADDRESS:PORT or ADDRESS:PORT/udp, such as 203.0.113.1:443 or [2001:db8:f::1]:53/udp", text)
	}
	return to, protocol, nil
}
