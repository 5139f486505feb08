"""The durable record of edits, and the forms in which they leave: models, adapters, factors, facts."""
