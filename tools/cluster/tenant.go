package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// TenantCluster is an additional tenant cluster of a lab: a control plane and two nodes, which can run EchoImage.
type TenantCluster struct {
	*ControlPlane
	Nodes []*Node
	ccm   *Process
}

// AddTenant adds a tenant cluster. number, from 2 to 9, determines its addresses. Its nodes also have an interface on the clients' segment, by
// which they answer clients in mode direct.
func (l *Lab) AddTenant(ctx context.Context, name string, number int) (_ *TenantCluster, err error) {
	host, err := l.net.Namespace(name)
	if err != nil {
		return nil, err
	}
	t := &TenantCluster{}
	l.tenants = append(l.tenants, t)
	if err := l.plugIntoNodes(host, name, 10*number); err != nil {
		return nil, err
	}
	for i := 1; i <= 2; i++ {
		if err := l.addNode(t, fmt.Sprintf("%s-node%d", name, i), 10*number+i); err != nil {
			return nil, err
		}
	}
	if err := routesOf(t.Nodes); err != nil {
		return nil, err
	}
	if t.ControlPlane, err = startControlPlane(ctx, host, name, fmt.Sprintf("%s%d", nodes4, 10*number), l.options.Kubernetes, l.Dir); err != nil {
		return nil, err
	}
	for _, n := range t.Nodes {
		n.cluster = t.ControlPlane
	}
	pause, echo := filepath.Join(l.Dir, "pause.tar"), filepath.Join(l.Dir, "echo.tar")
	err = errors.Join(writeImage(pause, pauseImage, filepath.Join(l.options.Products, "pause")), writeImage(echo, EchoImage, filepath.Join(l.options.Products, "echo")))
	if err != nil {
		return nil, err
	}
	return t, l.startNodes(ctx, t.Nodes, []string{pause, echo})
}

func (l *Lab) addNode(t *TenantCluster, name string, number int) (err error) {
	n := l.newNode(name, number, number)
	if n.Namespace, err = l.net.Namespace(name, routerSysctls...); err != nil {
		return err
	}
	t.Nodes = append(t.Nodes, n)
	return errors.Join(l.plugIntoNodes(n.Namespace, name, number), l.plugIntoClients(n.Namespace, name, number))
}

// StartCCMOf is like StartCCM, for an additional tenant cluster.
func (l *Lab) StartCCMOf(ctx context.Context, t *TenantCluster) (err error) {
	t.ccm, err = l.startCCM(ctx, t.Name, t.ControlPlane)
	return err
}
