"""The network of Krizhevsky et al. 2012, its split over two GPUs, and the loop that trains it."""
