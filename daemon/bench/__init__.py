"""`mdd bench`: what a volume costs, by stage, against other ways and against the machine's limits."""
