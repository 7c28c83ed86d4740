"""From image trees to tar shards with a manifest, and tools that look at them."""
