"""xcls: which attention, position encoding and size give the quality you need for the least cost, on your text."""
