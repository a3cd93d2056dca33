"""Averaging weights in rounds: what workers and their leader tell one another about the weights, as pure logic."""
