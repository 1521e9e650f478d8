"""The shell: replicas, proposals, the directory, and what operators ask."""
