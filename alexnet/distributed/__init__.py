"""Several processes: the mesh of columns and replicas, and what feeds it."""
