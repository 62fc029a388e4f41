package dataplane

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelb.k8c.io/core/model"
)

// moody is a dataplane whose calls fail while it has an error.
type moody struct {
	Fake
	err error
	// own is the generation that it returns itself.
	own Generation
}

// Describe implements Dataplane.
func (m *moody) Describe(ctx context.Context) (Description, error) {
	d, _ := m.Fake.Describe(ctx)
	return d, m.err
}

// Configure implements Dataplane.
func (m *moody) Configure(context.Context, Config) error { return m.err }

// Apply implements Dataplane.
func (m *moody) Apply(context.Context, Change) (Result, error) {
	return Result{Generation: m.own, Operations: 7}, m.err
}

var errMoody = errors.New("netlink: message too long")

func TestAfterAnErrorTheManagerHasToAskForTheState(t *testing.T) {
	m := &moody{}
	d := Checked(m)
	require.NoError(t, d.Configure(t.Context(), Config{StateDir: "gw"}))
	_, err := d.Apply(t.Context(), Change{Next: at(1)})
	require.NoError(t, err)
	// Only Apply fails, so that the description is not the reason.
	failing := &failingApply{m}
	c := d.(*checked)
	c.Dataplane = failing
	_, err = d.Apply(t.Context(), Change{Base: at(1), Next: at(2)})
	require.ErrorIs(t, err, errMoody)
	c.Dataplane = m
	_, err = d.Apply(t.Context(), Change{Base: at(1), Next: at(2)})
	require.ErrorIs(t, err, ErrResync, "the state is not that of the former generation")
	held, err := d.Applied(t.Context())
	require.NoError(t, err)
	require.Zero(t, held.Generation)
	_, err = d.Apply(t.Context(), Change{Next: at(3)})
	require.NoError(t, err)
}

// failingApply fails in Apply alone.
type failingApply struct{ *moody }

// Apply implements Dataplane.
func (f *failingApply) Apply(context.Context, Change) (Result, error) { return Result{}, errMoody }

func TestADataplaneThatCannotDescribeItselfGetsNoRecords(t *testing.T) {
	m := &moody{}
	d := Checked(m)
	require.NoError(t, d.Configure(t.Context(), Config{StateDir: "gw"}))
	m.err = errMoody
	_, err := d.Apply(t.Context(), Change{Next: at(1)})
	require.ErrorIs(t, err, errMoody)
	_, err = d.Render(t.Context(), model.Snapshot{})
	require.ErrorIs(t, err, errMoody)
	m.err = nil
	_, err = d.Apply(t.Context(), Change{Next: at(1)})
	require.NoError(t, err, "nothing was changed before")
}

func TestAFailedConfigurationAndACloseEndChanges(t *testing.T) {
	m := &moody{err: errMoody}
	d := Checked(m)
	require.ErrorIs(t, d.Configure(t.Context(), Config{StateDir: "gw"}), errMoody)
	m.err = nil
	_, err := d.Apply(t.Context(), Change{Next: at(1)})
	require.EqualError(t, err, "apply before configure")
	require.NoError(t, d.Configure(t.Context(), Config{StateDir: "gw"}))
	_, err = d.Apply(t.Context(), Change{Next: at(1)})
	require.NoError(t, err)
	require.NoError(t, d.Close(t.Context(), false))
	_, err = d.Apply(t.Context(), Change{Base: at(1), Next: at(2)})
	require.EqualError(t, err, "apply before configure")
}

func TestTheGenerationIsThatOfTheChangeAndNotTheDataplanes(t *testing.T) {
	d := Checked(&moody{own: Generation{"other", 99}})
	require.NoError(t, d.Configure(t.Context(), Config{StateDir: "gw"}))
	result, err := d.Apply(t.Context(), Change{Next: at(1)})
	require.NoError(t, err)
	require.Equal(t, Result{Generation: at(1), Operations: 7}, result)
}

func TestARefusedRecordIsNamedInItsError(t *testing.T) {
	require.Equal(t, "pool a/p", RecordError{Pool: "a/p"}.Record())
	require.Equal(t, "frontend TCP 203.0.113.1:80", RecordError{Frontend: web(80, func(*model.Frontend) {}).FrontendKey}.Record())
	require.Equal(t, "e/4", at(4).String())
}

func TestPollEndsWithItsContextEvenIfNothingIsDue(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, Poll(ctx, time.Hour, func(time.Time) { t.Error("the interval is an hour") }))
}
