package controller

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelb.k8c.io/api/plain"
	"kubelb.k8c.io/api/v1alpha1"
	"kubelb.k8c.io/core/phrase"
	"kubelb.k8c.io/core/translate"
)

// Reasons of conditions that only this package sets.
const (
	reasonAccepted               = "Accepted"
	reasonAllocated              = "Allocated"
	reasonProgrammed             = "Programmed"
	reasonAnnounced              = "Announced"
	reasonReady                  = "Ready"
	reasonNotAccepted            = "NotAccepted"
	reasonWaitingForGateway      = "WaitingForGateway"
	reasonWaitingForAnnouncement = "WaitingForAnnouncement"
	reasonNotAnnounced           = "NotAnnounced"
	reasonDataplaneRefused       = "DataplaneRefused"
	reasonNoGateway              = "NoGateway"
	reasonGatewaySilent          = "GatewaySilent"
	reasonMaybeRefused           = "MaybeRefused"
)

// conditions sets the conditions of one LoadBalancer.
type conditions struct{ lb *v1alpha1.LoadBalancer }

func (c *conditions) set(kind string, is bool, reason, message string) {
	c.setStatus(kind, map[bool]metav1.ConditionStatus{false: metav1.ConditionFalse, true: metav1.ConditionTrue}[is], reason, message)
}

func (c *conditions) setStatus(kind string, status metav1.ConditionStatus, reason, message string) {
	plain.SetCondition(&c.lb.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: c.lb.Generation})
}

func (c *conditions) isTrue(kind string) bool {
	return meta.IsStatusConditionTrue(c.lb.Status.Conditions, kind)
}

func (c *conditions) accept(problems []translate.Problem) {
	if len(problems) > 0 {
		messages := make([]string, len(problems))
		for i, p := range problems {
			messages[i] = p.Message
		}
		c.set(v1alpha1.ConditionAccepted, true, problems[0].Reason, phrase.Few(messages, "; "))
		return
	}
	c.set(v1alpha1.ConditionAccepted, true, reasonAccepted, "the object is valid")
}

// holds reports whether the condition is True for the object's present generation.
func (c *conditions) holds(kind string) bool {
	condition := meta.FindStatusCondition(c.lb.Status.Conditions, kind)
	return condition != nil && condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == c.lb.Generation
}

// settled reports whether gateways have applied the object's present generation. Later versions that differ only in the status need no new report.
func (c *conditions) settled() bool {
	return c.holds(v1alpha1.ConditionProgrammed) && c.holds(v1alpha1.ConditionAnnounced)
}

func (c *conditions) pending() {
	c.set(v1alpha1.ConditionProgrammed, false, reasonWaitingForGateway, "the allocation has just changed")
	c.set(v1alpha1.ConditionAnnounced, false, reasonWaitingForAnnouncement, "the allocation has just changed")
	c.served("", "")
	c.ready()
}

func (c *conditions) notServed() {
	c.set(v1alpha1.ConditionProgrammed, false, reasonNotAccepted, "nothing to program")
	c.set(v1alpha1.ConditionAnnounced, false, reasonNotAccepted, "nothing to announce")
	c.served("", "")
	c.ready()
}

// served sets the condition Served by the tries of gateways. It removes the condition if message is empty: no connection failed.
func (c *conditions) served(reason, message string) {
	if message == "" {
		meta.RemoveStatusCondition(&c.lb.Status.Conditions, v1alpha1.ConditionServed)
		return
	}
	c.set(v1alpha1.ConditionServed, false, reason, message)
}

// ready sets the condition Ready: a copy of the first of the other conditions that is not True.
func (c *conditions) ready() {
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionAddressAllocated, v1alpha1.ConditionProgrammed, v1alpha1.ConditionAnnounced, v1alpha1.ConditionServed} {
		if condition := plain.NotTrue(c.lb.Status.Conditions, kind); condition != nil {
			c.setStatus(v1alpha1.ConditionReady, condition.Status, condition.Reason, condition.Message)
			return
		}
	}
	reason, message := reasonReady, "served"
	accepted, announced := meta.FindStatusCondition(c.lb.Status.Conditions, v1alpha1.ConditionAccepted), meta.FindStatusCondition(c.lb.Status.Conditions, v1alpha1.ConditionAnnounced)
	switch {
	case announced.Reason == v1alpha1.ReasonAddressConflict:
		reason, message = announced.Reason, "served, but: "+announced.Message
	case accepted.Reason != reasonAccepted:
		reason, message = accepted.Reason, "served, but: "+accepted.Message
	}
	c.set(v1alpha1.ConditionReady, true, reason, message)
	// The gateway that announces may lag behind another one whose dataplane holds the object already.
	programmed := meta.FindStatusCondition(c.lb.Status.Conditions, v1alpha1.ConditionProgrammed)
	meta.FindStatusCondition(c.lb.Status.Conditions, v1alpha1.ConditionReady).ObservedGeneration = min(programmed.ObservedGeneration, announced.ObservedGeneration)
}
