module kubelb.k8c.io/ccm

go 1.26.0
