"""The network: attention that is continued click by click, reversible layers, and what trains them."""
