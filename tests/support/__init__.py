"""What several tests share: writers, hostile peers, faults, stand-ins."""
