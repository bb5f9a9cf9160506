"""The feature maps, one file each, each ending in its SPEC; `bochner.catalog` collects them."""
