"""The closed-form family: locate-then-edit methods as recipes of one update rule (methods.md A to D)."""
