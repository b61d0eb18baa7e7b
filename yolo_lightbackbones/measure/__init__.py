"""Cost and speed of modules: parameters, multiply-adds, timings."""
