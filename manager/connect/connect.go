// Package connect tests a TCP port by a connection.
package connect

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// Try opens a connection from this host and watches it. accepted: the connection was established. err is nil if it stayed open or data arrived; otherwise it
// is why there was no connection, or why it ended: io.EOF, or a reset. within is the timeout of the handshake, watch how long the connection is watched: a
// proxy accepts a connection before it has one to an endpoint, and then resets or ends it.
func Try(ctx context.Context, to string, within, watch time.Duration) (accepted bool, err error) {
	conn, err := (&net.Dialer{Timeout: within}).DialContext(ctx, "tcp", to)
	if err != nil {
		// The connect call itself may already report a reset of an accepted connection. A connection that was not accepted is reported as refused.
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

// Cause returns a short text of why there was no connection.
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
