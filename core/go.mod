module kubelb.k8c.io/core

go 1.26.0
