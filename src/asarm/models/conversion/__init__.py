"""Any-subset models made of other models' weights."""
