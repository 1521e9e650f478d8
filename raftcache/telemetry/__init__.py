"""What a node tells about itself: logs, metrics and traces; all names stand in `names`."""
