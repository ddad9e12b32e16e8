"""Feature caching and forecasting: most steps run a part of the network only."""
