"""The fronts: real gRPC over loopback."""
