package cases

// All returns all cases in the order in which they run, from single packets to restarts of the process.
func All() []Case {
	return []Case{
		tcpEcho(), tcpHalfClose(), tcpReset(), tcpTransfer(),
		udpReply(), udpFragments(), udpManyClients(),
		manyPorts(), tcpAndUDP(), samePortOnTwoVIPs(), otherPorts(), hairpin(), emptyPool(), refusal(), unreachable(),

		uniform(), weights(), maglevTable(), poolChange(), gatewaysAgree(), endpointAddresses(), bothFamilies(), affinity(), affinityTimeout(), affinityPools(), localSet(),

		endpointsChange(), unhealthy(), unanswered(), portsAgain(), portsAgainTransparent(), portsAgainDirect(), drain(), ownPoolChanges(), longConnections(), frontendUpdates(), frontendDeleted(), vipReused(),
		sourceRanges(), transparent(), direct(), directChanges(), directPath(), handover(), proxyProtocol(), idleTimeout(), limits(), rateLimits(), icmpEcho(), pathMTU(),

		againstOracle(),
		badRecords(), failedUpdates(), unusualChanges(), undeclaredFeatures(), generations(), streamCut(), killedDuringApply(), restart(), switching(), secondBackend(), purge(),
	}
}
