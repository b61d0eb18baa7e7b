"""The families, one file each. A family needs only torch and the contract, layers and folding of this package."""
