"""Levels of the alarms about quality, and the appearance of the specimens to learn from.

Written by benchmarks/alarms.py from good sessions; not edited by hand.
"""

LEVELS: dict[str, tuple[float, float, float]] = {
    "all_misplaced": (1.583, 3.299, 4.96),
    "column": (7.479, 5.809, 6.648),
    "dimmed": (0.4077, 0.2926, 0.2526),
    "innovation": (6.219, 8.289, 11.85),
    "misplaced rising": (1e09, 3.307, 2.181),
    "renewed": (0.2476, 1.09, 1.107),
    "softened": (1.758, 1.353, 1.058),
    "spot rising": (1e09, 8.752, 6.573),
    "strange": (4.286, 4.22, 4.3),
}
"""A symptom's level in the second, the third and later sweeps of a session."""
FAMILIAR: tuple[float, ...] = (-1.915, -2.003, -2.177, 0.1089, 0.3383, -1.926, 0.4683, -1.443, 0.3215)
WHITENING: tuple[tuple[float, ...], ...] = (
    (1.541, -0.2628, 0.5096, 0.36, -0.3096, 0.2336, 2.25, 0.3384, 0.2888),
    (0, 1.759, 0.2749, -4.885, -3.819, 3.043, 0.9471, 0.1211, 0.0442),
    (0, 0, 1.664, -8.25, -1.626, 2.194, -0.8349, -0.2365, -1.439),
    (0, 0, 0, 17.75, -12.31, 3.54, 0.04295, 0.3717, -0.4234),
    (0, 0, 0, 0, 14.63, -6.906, 0.1726, 0.8287, -3.171),
    (0, 0, 0, 0, 0, 3.384, -1.519, 0.05182, 1.452),
    (0, 0, 0, 0, 0, 0, 4.318, 0.09075, -2.13),
    (0, 0, 0, 0, 0, 0, 0, 1.242, -0.4232),
    (0, 0, 0, 0, 0, 0, 0, 0, 6.991),
)
