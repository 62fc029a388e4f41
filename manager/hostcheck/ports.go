package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kubelb.k8c.io/backends/dataplane"
)

// Port is a port at which a gateway is going to listen.
type Port struct {
	// Network is tcp or udp. Address is the value of the flag, such as ":9443".
	Network, Address string
	// For is the purpose. Flag is the flag that sets the address; empty if it is fixed.
	For, Flag string
	// Costs is what does not work without the port. If it is empty, the gateway does not work.
	Costs string
}

// self is the name of this program's processes.
const self = "kubelb-manager"

// check listens at the port for a moment.
func (p Port) check() dataplane.Check {
	c := dataplane.Check{Group: dataplane.GroupPorts, Subject: fmt.Sprintf("port %s %s for %s", p.Network, p.Address, p.For), Costs: p.Costs, State: dataplane.CheckOK, Found: "is free"}
	err := p.listen()
	if err == nil {
		return c
	}
	c.State, c.Found = dataplane.CheckMissing, err.Error()
	if p.Flag != "" {
		c.Advice = "choose another port by " + p.Flag
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return c
	}
	owner, pid := p.owner()
	switch {
	case owner == self:
		c.State, c.Found, c.Advice = dataplane.CheckOK, fmt.Sprintf("is used by %s (process %d), which runs already", owner, pid), ""
		return c
	case owner != "":
		c.Found = fmt.Sprintf("is used by %s (process %d)", owner, pid)
	default:
		c.Found = "is used by another program"
	}
	if end := "end that program"; c.Advice == "" {
		c.Advice = end
	} else {
		c.Advice = end + ", or " + c.Advice
	}
	return c
}

func (p Port) listen() error {
	var config net.ListenConfig
	if p.Network == "udp" {
		conn, err := config.ListenPacket(context.Background(), p.Network, p.Address)
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	listener, err := config.Listen(context.Background(), p.Network, p.Address)
	if err == nil {
		err = listener.Close()
	}
	return err
}

// owner returns the program that listens at the port, and its process ID. The name is empty if they cannot be found, as for processes of the host
// from a container.
func (p Port) owner() (program string, pid int) {
	_, number, err := net.SplitHostPort(p.Address)
	if err != nil {
		return "", 0
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return "", 0
	}
	sockets := map[string]bool{}
	for _, family := range []string{"", "6"} {
		p.socketsAt(uint16(port), "/proc/thread-self/net/"+p.Network+family, sockets)
	}
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", 0
	}
	for _, d := range descriptors {
		target, err := os.Readlink(d)
		if err != nil || !sockets[target] {
			continue
		}
		process := filepath.Dir(filepath.Dir(d))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		pid, _ = strconv.Atoi(filepath.Base(process))
		return strings.TrimSpace(string(name)), pid
	}
	return "", 0
}

// socketsAt adds each socket of a table (proc_pid_net(5)) that listens at the port, by its name in /proc/PID/fd.
func (p Port) socketsAt(port uint16, table string, into map[string]bool) {
	const listens, local, state, inode = "0A", 1, 3, 9
	text, err := os.ReadFile(table)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) <= inode || !strings.HasSuffix(fields[local], fmt.Sprintf(":%04X", port)) || p.Network == "tcp" && fields[state] != listens {
			continue
		}
		into["socket:["+fields[inode]+"]"] = true
	}
}
