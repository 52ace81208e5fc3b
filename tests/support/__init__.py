"""What tests share: free ports, bounded waiting, real processes that clean up after themselves."""
