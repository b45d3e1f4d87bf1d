"""The data plane: shards, banks, and the merge between them."""
