package e2e

import (
	"fmt"
	"regexp"
	"testing"
	"time"
)

func TestTheManagerHasMetrics(t *testing.T) {
	apply(t, web("counted", 1)+service("counted", "ports: [{port: 80, targetPort: 8080}]"))
	cleanUp(t, "service/counted", "deployment/counted")
	for _, ip := range externalIPs(t, "counted", 2) {
		reachesPods(t, ip, 80, 1)
	}
	// The dataplane's counters are read every fifteen seconds.
	eventually(t, 40*time.Second, func() error {
		page, err := lab.OnGateway(t.Context(), "curl", "-sS", "http://127.0.0.1:9443/metrics")
		if err != nil {
			return err
		}
		for _, want := range []string{
			`kubelb_gateway_ready 1`,
			`kubelb_gateway_may_answer 1`,
			`kubelb_gateway_backend_info\{backend="` + backendName() + `",version="[0-9.]+"\} 1`,
			`kubelb_gateway_frontends [1-9][0-9]*`,
			`kubelb_gateway_announced_addresses [1-9][0-9]*`,
			`kubelb_gateway_conflicting_addresses 0`,
			`kubelb_gateway_apply_seconds_count [1-9][0-9]*`,
			`kubelb_tenant_connections_total\{tenant="a"\} [1-9][0-9.e+]*`,
			`kubelb_address_pool_addresses\{family="IPv4",pool="public",state="used"\} [1-9][0-9]*`,
			`kubelb_tenant_loadbalancers\{state="ready",tenant="a"\} [1-9][0-9]*`,
		} {
			if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(page) {
				return fmt.Errorf("no metric matches %s in\n%s", want, regexp.MustCompile(`(?m)^kubelb_.*$`).FindAllString(page, -1))
			}
		}
		return nil
	})
}
