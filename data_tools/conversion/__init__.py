"""From a source folder to shards, an index and a manifest, resumable and in parts."""
