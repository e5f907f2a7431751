"""Linear branches become one layer: the algebra of kernels, and the pass that applies it to a graph."""
