module kubelb.k8c.io/backends

go 1.26.0
