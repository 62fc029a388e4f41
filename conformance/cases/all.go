package cases

// All returns all cases in the order in which they run, from single packets to restarts of the process.
func All() []Case {
	return []Case{
		tcpEcho(), tcpHalfClose(), tcpReset(), tcpTransfer(),
		udpReply(), udpFragments(), udpManyClients(),
		manyPorts(), tcpAndUDP(), samePortOnTwoVIPs(), otherPorts(), announcesNothing(), hairpin(), emptyPool(), refusal(), unreachable(),

		uniform(), weights(), maglevTable(), anyPool(), poolChange(), gatewaysAgree(), endpointAddresses(), bothFamilies(), affinity(), affinityTimeout(), affinityPools(), localSet(),

		endpointsChange(), unhealthy(), unanswered(), portsAgain(), portsAgainTransparent(), portsAgainDirect(), drain(), ownPoolChanges(), longConnections(), frontendUpdates(), frontendDeleted(), vipReused(),
		sourceRanges(), transparent(), direct(), directChanges(), directPath(), handover(), proxyProtocol(), idleTimeout(), silence(), limits(), rateLimits(), icmpEcho(), pathMTU(), icmpErrors(), icmpStrays(),

		validPackets(), packetHeaders(), packetHeadersTransparent(), packetHeadersDirect(), loss(),
		againstOracle(),
		preflight(), unknownOption(),
		badRecords(), failedUpdates(), unusualChanges(), undeclaredFeatures(), generations(), streamCut(), killedDuringApply(), restart(), switching(), secondBackend(), purge(),
		purgeBySuccessor(), stats(), operations(), render(), applied(), watch(), transit(),
	}
}
