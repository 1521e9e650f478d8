"""Generated packages of the operators' interface."""
