package cases

import (
	"crypto/sha256"
	"fmt"

	"kubelb.k8c.io/core/model"
)

// The tenants of cases. Their records have names like those of a gateway, so that a backend does not know that it is tested.
const (
	tenant      = "blue"
	otherTenant = "green"
)

// PoolID returns the id of a tenant's pool: the tenant, the name of a list of addresses, and the family.
func (c *C) PoolID(tenant, name string) model.PoolID {
	family := "v6"
	if c.V4 {
		family = "v4"
	}
	return model.PoolID(tenant + "/" + name + "." + family)
}

// ownerOf returns the LoadBalancer of a tenant's frontends. On the management cluster it has the UID of the tenant's Service as its name.
func ownerOf(tenant string) model.ObjectName {
	sum := sha256.Sum256([]byte(tenant))
	return model.ObjectName{Namespace: "tenant-" + tenant, Name: fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])}
}

// give makes the frontend belong to a tenant, with the tenant's pool of this name.
func (c *C) give(f *model.Frontend, tenant, pool string) {
	f.Owner, f.Tenant, f.Pool = ownerOf(tenant), tenant, c.PoolID(tenant, pool)
}
