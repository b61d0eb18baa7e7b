"""The families, one file each. Each needs torch and this package's contract, layers and folding alone."""
