"""Presets (TOML) that ship with mdd: `mdd config show --preset NAME`."""
