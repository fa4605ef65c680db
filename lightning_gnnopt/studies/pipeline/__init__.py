"""The pipeline study: what prefetching and validation beside training save, alone and together."""
