"""Figures as tables, pages and pictures; two evaluations compared."""
