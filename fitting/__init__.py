"""Explain images by parameters: detection, energies, solvers, plans, and what a fit writes."""
