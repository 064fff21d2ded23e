"""The table of dense -> MoE pairs: names, shapes, roles, config mapping and refusals, as plain data."""
