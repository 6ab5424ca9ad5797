"""Everything on one machine: `modelfleetd up`, and `modelfleetd demo` on top of it."""
