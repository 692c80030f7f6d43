"""Files on disk become batches on a device: lists, integrity, sharding, loaders."""
