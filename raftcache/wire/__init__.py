"""HTTP/2 and gRPC as bytes, in both roles: what fronts and the client speak. No sockets, no clock, no tasks."""
