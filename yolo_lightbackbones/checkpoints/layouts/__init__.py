"""Names of the families' parameters in published files, one module per family."""
