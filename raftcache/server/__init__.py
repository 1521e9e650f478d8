"""The composition root: settings to node to fronts, and the ports around them."""
