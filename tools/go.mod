module kubelb.k8c.io/tools

go 1.26.0
