// Package connect finds out what becomes of a TCP connection to a port.
package connect

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// Try connects by a socket of this host and watches the connection. accepted: there was one. err is nil if it lasted, or brought data; otherwise why there
// was none, or why it ended: io.EOF, or a reset. within is the time until there is a connection, watch how long it is watched: a proxy accepts a connection
// before it has one to an endpoint, and then resets or ends it.
func Try(ctx context.Context, to string, within, watch time.Duration) (accepted bool, err error) {
	conn, err := (&net.Dialer{Timeout: within}).DialContext(ctx, "tcp", to)
	if err != nil {
		// A reset may be told of the connection's beginning already. Of no connection it would be said that it is refused.
		return errors.Is(err, syscall.ECONNRESET), err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(watch)); err != nil {
		return true, err
	}
	if _, err = conn.Read(make([]byte, 1)); isTimeout(err) {
		return true, nil
	}
	return true, err
}

// Cause is why there was no connection, in few words.
func Cause(err error) string {
	if isTimeout(err) {
		return "no answer"
	}
	if number, is := errors.AsType[syscall.Errno](err); is {
		return number.Error()
	}
	return err.Error()
}

func isTimeout(err error) bool {
	timeout, is := errors.AsType[net.Error](err)
	return is && timeout.Timeout()
}
