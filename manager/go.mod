module kubelb.k8c.io/manager

go 1.26.0
