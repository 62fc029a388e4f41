module kubelb.k8c.io/backends/nftables

go 1.26.0
