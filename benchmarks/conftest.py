"""Makes `support`, the helpers of the tests, importable."""

import measuring  # noqa: F401
