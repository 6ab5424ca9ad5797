"""The messages of `modelfleet.launcher.v1` ↔ the domain. A file per concept."""
