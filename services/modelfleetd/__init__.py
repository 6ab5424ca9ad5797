"""modelfleet's daemons: registry, capacity, launcher, stability and the platform agents."""
