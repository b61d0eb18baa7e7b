"""Model YAMLs: where the bundled ones are, and how they are written."""
