"""MicroDiffusion live: depth-resolved volumes from Bessel-beam projections while the acquisition runs.

The ground floor: what others may rely on. Importing it never imports torch or pycromanager.
"""

__version__ = "0.1.0"
