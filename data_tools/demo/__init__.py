"""Procedural products with exact defect masks: a benchmark that needs no download."""
