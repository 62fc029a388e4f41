module kubelb.k8c.io/conformance

go 1.26.0
