"""Fronts: what speaks gRPC to clients. They know requests and replies as bytes, not what they mean."""
