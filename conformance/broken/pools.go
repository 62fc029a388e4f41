package broken

// inPools returns faults in the use of a pool's endpoints.
func inPools() []Mutation { return nil }
