"""How good the answers are: protocol, baselines, scores, and the report of `mdd evaluate`."""
