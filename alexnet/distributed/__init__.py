"""Several processes: the mesh of columns and replicas, and the loader that feeds it."""
