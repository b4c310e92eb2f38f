"""A wide area network on one machine: two network namespaces and what lies between them."""
