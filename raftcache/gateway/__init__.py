"""The gRPC services: from protobuf to lists of requests for the node, and from its replies back to protobuf."""
