"""The registered PyTorch architectures, their data and their training; importing this package imports no torch."""
