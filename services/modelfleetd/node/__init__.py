"""The platform agent for one machine: replicas as processes behind Envoy, and a durable ledger of effects."""
